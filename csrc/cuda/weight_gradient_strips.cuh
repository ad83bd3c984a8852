// The two-stage shared-memory pipeline of a convolution's weight gradient. A step is a strip of
// whole rows of x and dy. The copies of the next strip run while the block computes this one.
#pragma once

#include <cstdint>

#include "core/fused_convolution.h"
#include "cuda/async_copy.cuh"

namespace trajmatch::cuda::weight_gradient {

constexpr int kThreads = 256;

// Shared-memory layout of an operand. Float32: [channels / 4, pixels, 4]. The pixel count is padded
// as little as possible such that lanes that read four pixels of eight channels have no bank
// conflicts. Half precision: [pixels, channels], two channels per float. A pixel is padded by 16
// channels, so that lanes that read four channels each, of four pixels, have no bank conflicts.
template <int pixels, int channels, bool half>
struct Operand {
  static constexpr int kChannels = channels;
  static constexpr int kPixel = half ? channels / 2 + 8 : 4;  // floats from one pixel to the next
  // floats from 4 channels to the next 4
  static constexpr int kGroup = half ? 2 : ((pixels + 3) / 8 * 8 + 4) * 4;
  static constexpr int kSize = half ? pixels * kPixel : channels / 4 * kGroup;
};

template <int side, int channels, ProductKind kind>
struct Strips {
  static constexpr bool kHalf = kind == ProductKind::kFp16;
  static constexpr int kInWord = kHalf ? 2 : 1;                  // channels per float
  static constexpr int kInputs = channels < 64 ? channels : 64;  // input channels of a block
  static constexpr int kOutputs = channels;
  static constexpr int kParts = 8 / (kInputs / 32 * (kOutputs / 32));
  // Pixels per strip. In half precision 128 pixels fit into shared memory, and the products are so
  // fast that more barriers would cost too much.
  static constexpr int kPixels = kHalf ? (side == 16 ? 128 : 64) : kParts == 8 ? 64 : 32;
  static constexpr int kAtOnce = kHalf ? 16 : 8;  // pixels per call of multiply()
  static constexpr int kProducts = kPixels / kAtOnce;
  static constexpr int kRows = kPixels / side;
  static constexpr int kPitch = side + 2;
  static constexpr int kOfImage = side / kRows;

  using Input = Operand<kRows * kPitch, kInputs, kHalf>;
  using Output = Operand<kPixels, kOutputs, kHalf>;
  static constexpr int kSize = Input::kSize + Output::kSize;
  static constexpr size_t kBytes = 2 * kSize * sizeof(float);

  // Index of a pixel of the strip in the bordered x, for tap kx = 0.
  TM_HD static constexpr int bordered(int pixel) { return pixel / side * kPitch + pixel % side; }
};

// Copies the strips of the block's images: first all strips of one pair, then all of the other.
template <int side, int channels, ProductKind kind>
class StripPipeline {
  using S = Strips<side, channels, kind>;

 public:
  // `swapped`: the second pair is computed first.
  __device__ __forceinline__ StripPipeline(const FusedConvolutionWeight& params, bool swapped,
                                           float* memory)
      : params_(params),
        memory_(memory),
        swapped_(swapped),
        ky_(static_cast<int>(blockIdx.y) % 3),
        first_input_(static_cast<int>(blockIdx.y) / 3 * S::kInputs) {
    const int64_t batch = params.shape.batch, per = (batch + params.splits - 1) / params.splits;
    const int64_t begin = blockIdx.x * per < batch ? blockIdx.x * per : batch;
    const int64_t end = begin + per < batch ? begin + per : batch;
    first_image_ = blockIdx.z * batch + begin;
    strips_ = static_cast<int>(end - begin) * S::kOfImage;
    // The buffers start as zeros. The border columns of x keep them, because no copy writes there.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * S::kSize; i += kThreads) memory_[i] = 0.0f;
    __syncthreads();
    if (steps() > 0) start(0);
  }

  __device__ __forceinline__ int steps() const { return params_.pairs * strips_; }
  __device__ __forceinline__ int steps_of_pair() const { return strips_; }
  // Starts the copies of the next step, then waits for those of this step.
  __device__ __forceinline__ void begin(int step) {
    if (step + 1 < steps()) {
      start(step + 1);
      copies_.template wait<1>();
    } else {
      copies_.template wait<0>();
    }
    __syncthreads();
  }
  __device__ __forceinline__ void end() const { __syncthreads(); }
  __device__ __forceinline__ const float* input(int step) const {
    return memory_ + step % 2 * S::kSize;
  }
  __device__ __forceinline__ const float* output(int step) const {
    return input(step) + S::Input::kSize;
  }

 private:
  __device__ __forceinline__ void start(int step) {
    // Select by comparison, for the reason given in cuda/convolution_pipeline.cuh.
    const bool later = step >= strips_, second = later != swapped_;
    const float* const x = second ? params_.pair[1].x : params_.pair[0].x;
    const float* const grad_y = second ? params_.pair[1].grad_y : params_.pair[0].grad_y;
    const int strip = later ? step - strips_ : step;
    const int64_t image = first_image_ + strip / S::kOfImage;
    const int first_row = strip % S::kOfImage * S::kRows;
    const int64_t plane = image * params_.shape.image_size();
    float* const to = memory_ + step % 2 * S::kSize;
    copy<typename S::Input, true>(x + (plane + first_input_) / S::kInWord, first_row + ky_ - 1, to);
    copy<typename S::Output, false>(grad_y + plane / S::kInWord, first_row, to + S::Input::kSize);
    copies_.commit();
  }

  // Copies the rows of a plane from `first_row` on. Rows outside the plane become zeros.
  template <class Operand, bool is_bordered>
  __device__ __forceinline__ void copy(const float* from, int first_row, float* to) {
    constexpr int kPieces = Operand::kChannels / S::kInWord / 4;  // 16-byte pieces per pixel
    for (int i = static_cast<int>(threadIdx.x); i < kPieces * S::kPixels; i += kThreads) {
      int piece, pixel;
      if constexpr (S::kHalf) {  // a warp copies whole pixels, each contiguous
        piece = i % kPieces;
        pixel = i / kPieces;
      } else {  // a warp copies 64 bytes of each of 8 pixels: whole sectors, no bank conflicts
        const int rest = i / 32;
        piece = rest / (S::kPixels / 8) * 4 + i / 8 % 4;
        pixel = rest % (S::kPixels / 8) * 8 + i % 8;
      }
      const int row = first_row + pixel / side;
      const int place = is_bordered ? S::bordered(pixel) + 1 : pixel;
      float* const at = to + place * Operand::kPixel + piece * (S::kHalf ? 4 : Operand::kGroup);
      if (row >= 0 && row < side) {
        copies_.start(at, from + (row * side + pixel % side) * (channels / S::kInWord) + piece * 4);
      } else {
        *reinterpret_cast<float4*>(at) = float4{0.0f, 0.0f, 0.0f, 0.0f};
      }
    }
  }

  const FusedConvolutionWeight& params_;
  float* const memory_;
  const bool swapped_;
  const int ky_, first_input_;
  int64_t first_image_;
  int strips_;
  AsyncCopies copies_;
};

}  // namespace trajmatch::cuda::weight_gradient
