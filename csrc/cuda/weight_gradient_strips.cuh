// The three-stage shared-memory pipeline of a convolution's weight gradient. A step is a strip of
// whole rows of x and dy. The copies of the next two strips run while the block computes this one.
#pragma once

#include <cstdint>

#include "core/fused_convolution.h"
#include "cuda/async_copy.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda::weight_gradient {

constexpr int kThreads = 256;
constexpr int kStages = 3;

// Shared-memory layout of an operand: [pixels, channels], with 16 more bytes after each pixel, so
// that the lanes of a warp read without bank conflicts: the same 16 bytes of eight neighbouring
// pixels, or 32 bytes of every second pixel. Copies are pieces of 16 bytes: four float32 or eight
// half-precision channels.
template <int pixels, int channels, int piece>
struct Operand {
  static constexpr int kPieces = channels / piece;
  static constexpr int kPixel = 4 * (kPieces + 1);  // floats from one pixel to the next
  static constexpr int kSize = pixels * kPixel;
  static constexpr int kPixelsAtOnce = kThreads / kPieces;  // that the threads copy
};

template <int side, int channels, ProductKind kind>
struct Strips {
  static constexpr bool kHalf = kind == ProductKind::kFp16;
  static constexpr int kInFloat = kHalf ? 2 : 1;                 // channels per float
  static constexpr int kPiece = 4 * kInFloat;                    // channels
  static constexpr int kInputs = channels < 64 ? channels : 64;  // input channels of a block
  static constexpr int kOutputs = channels;
  static constexpr int kParts = 8 / (kInputs / 32 * (kOutputs / 32));
  // Pixels per strip: enough for a product for every part, if an image has so many.
  static constexpr int kPixels =
      (kHalf ? 64 : 32) * (kParts == 8 && (!kHalf || side == 16) ? 2 : 1);
  static constexpr int kAtOnce = kHalf ? 16 : 8;  // pixels per product
  static constexpr int kProducts = kPixels / kAtOnce;
  static constexpr int kRows = kPixels / side;
  static constexpr int kPitch = side + 2;
  static constexpr int kOfImage = side / kRows;

  using Input = Operand<kRows * kPitch, kInputs, kPiece>;
  using Output = Operand<kPixels, kOutputs, kPiece>;
  static constexpr int kSize = Input::kSize + Output::kSize;
  static constexpr size_t kBytes = kStages * kSize * sizeof(float);

  // Index of a pixel of the strip in the bordered x, for tap kx = 0.
  TM_HD static constexpr int bordered(int pixel) { return pixel / side * kPitch + pixel % side; }
};

// Copies the strips of the block's images: first all strips of one pair, then all of the other.
template <int side, int channels, ProductKind kind>
class StripPipeline {
  using S = Strips<side, channels, kind>;
  using Input = typename S::Input;
  using Output = typename S::Output;

 public:
  // `swapped`: the second pair is computed first.
  __device__ __forceinline__ StripPipeline(const FusedConvolutionWeight& params, bool swapped,
                                           float* memory)
      : params_(params),
        memory_(memory),
        ky_(static_cast<int>(blockIdx.y) % 3),
        pairs_left_(params.pairs),
        second_(swapped) {
    const int64_t batch = params.shape.batch, per = (batch + params.splits - 1) / params.splits;
    const int64_t begin = blockIdx.x * per < batch ? blockIdx.x * per : batch;
    const int64_t end = begin + per < batch ? begin + per : batch;
    first_image_ = blockIdx.z * batch + begin;
    strips_ = static_cast<int>(end - begin) * S::kOfImage;
    // The buffers start as zeros. The border columns of x keep them, because no copy writes there.
    for (int i = static_cast<int>(threadIdx.x); i < kStages * S::kSize; i += kThreads) {
      memory_[i] = 0.0f;
    }
    begin_pair();
    __syncthreads();
    for (int i = 0; i + 1 < kStages; ++i) start();
  }

  __device__ __forceinline__ int steps_of_pair() const { return strips_; }
  // Waits for this step's copies and the previous step's products. Then starts the copies for the
  // step after next.
  __device__ __forceinline__ void begin() {
    copies_.template wait<kStages - 2>();
    __syncthreads();
    stage_ = next(stage_);
    start();
  }
  __device__ __forceinline__ const float* input() const { return memory_ + stage_; }
  __device__ __forceinline__ const float* output() const { return input() + Input::kSize; }

 private:
  __device__ __forceinline__ static int next(int stage) {
    return stage == (kStages - 1) * S::kSize ? 0 : stage + S::kSize;
  }
  // The piece and the first pixel of a strip that this thread copies.
  template <class Operand>
  __device__ __forceinline__ static int piece() {
    return static_cast<int>(threadIdx.x) % Operand::kPieces;
  }
  template <class Operand>
  __device__ __forceinline__ static int pixel() {
    return static_cast<int>(threadIdx.x) / Operand::kPieces;
  }

  // Sets the sources to the thread's first pieces of a pair.
  __device__ __forceinline__ void begin_pair() {
    constexpr int kAll = channels / S::kPiece;  // pieces of a pixel in memory
    // Select by comparison, for the reason given in cuda/convolution_pipeline.cuh.
    const float* const x = second_ ? params_.pair[1].x : params_.pair[0].x;
    const float* const grad_y = second_ ? params_.pair[1].grad_y : params_.pair[0].grad_y;
    const int64_t first = first_image_ * side * side;
    const int first_input = static_cast<int>(blockIdx.y) / 3 * Input::kPieces;
    // The rows of x lie ky - 1 rows below those of dy.
    x_ = reinterpret_cast<const float4*>(x) + (first + (ky_ - 1) * side + pixel<Input>()) * kAll +
         first_input + piece<Input>();
    grad_y_ = reinterpret_cast<const float4*>(grad_y) + (first + pixel<Output>()) * kAll +
              piece<Output>();
    strip_ = 0;
  }

  // The places that this thread copies to.
  __device__ __forceinline__ float4* input_place(int at) const {
    // the threads copy whole rows at once, so the two offsets add up
    const int pixel_at = S::bordered(pixel<Input>()) + S::bordered(at) + 1;
    return reinterpret_cast<float4*>(memory_ + copied_ + pixel_at * Input::kPixel) + piece<Input>();
  }
  __device__ __forceinline__ float4* output_place(int at) const {
    const int pixel_at = pixel<Output>() + at;
    return reinterpret_cast<float4*>(memory_ + copied_ + Input::kSize + pixel_at * Output::kPixel) +
           piece<Output>();
  }

  // Starts the copies of a step, if any is left, and moves on to the next.
  __device__ __forceinline__ void start() {
    if (strip_ < strips_ && pairs_left_ > 0) {
      constexpr int kAll = channels / S::kPiece;
      copied_ = next(copied_);
      // Rows of x outside the plane become zeros.
      const int first_row = strip_ % S::kOfImage * S::kRows + ky_ - 1;
      for_own_pixels<Input>([&](int at) {
        const int row = first_row + (pixel<Input>() + at) / side;
        copies_.start(input_place(at), x_ + at * kAll, row >= 0 && row < side);
      });
      for_own_pixels<Output>([&](int at) { copies_.start(output_place(at), grad_y_ + at * kAll); });
      x_ += S::kPixels * kAll;
      grad_y_ += S::kPixels * kAll;
      if (++strip_ == strips_) {
        second_ = !second_;
        if (--pairs_left_ > 0) begin_pair();
      }
    }
    copies_.commit();  // an empty group when nothing is left, so that wait() counts steps
  }

  // Calls body(offset) for each group of pixels that the threads copy at once.
  template <class Operand, class Body>
  __device__ __forceinline__ static void for_own_pixels(const Body& body) {
    TM_UNROLL
    for (int at = 0; at < S::kPixels; at += Operand::kPixelsAtOnce) body(at);
  }

  const FusedConvolutionWeight& params_;
  float* const memory_;
  const int ky_;
  int64_t first_image_;
  int strips_;  // of a pair
  // The next copies: sources, strip, and the pairs that are left.
  const float4* x_ = nullptr;
  const float4* grad_y_ = nullptr;
  int strip_ = 0, pairs_left_;
  bool second_;
  // Offsets of the stages that the last copies fill and that the block computes.
  int copied_ = (kStages - 1) * S::kSize, stage_ = (kStages - 1) * S::kSize;
  AsyncCopies copies_;
};

}  // namespace trajmatch::cuda::weight_gradient
