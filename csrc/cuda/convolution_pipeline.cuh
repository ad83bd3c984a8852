// The two-stage shared-memory pipeline of a fused convolution block. A step covers 16 input
// channels and one row of three taps. The copies for the next step run while the block computes
// this one.
#pragma once

#include <cstdint>

#include "cuda/async_copy.cuh"
#include "cuda/convolution_tile.cuh"

namespace trajmatch::cuda::fused {

constexpr int kChunk = 16;  // input channels per step

// Shared-memory layout of 16 input channels, in words of one float. Inputs: [planes, pixels with a
// border of zeros, words]. Weights of one tap: [planes, outputs, words]. Because of the border, a
// tap is just an offset into the input.
//
// In float32 a plane has 4 channels in 4 words. In half precision there is one plane of 16 channels
// in 8 words. Four lanes read each pixel (or output): one float each in float32, so that a warp
// reads 8 pixels, or two floats each in half precision, so that half a warp reads 4. Either way
// these lanes read 128 consecutive bytes, without bank conflicts.
template <class Tile, ProductKind kind>
struct Chunk {
  static constexpr bool kHalf = kind == ProductKind::kFp16;
  static constexpr int kInWord = kHalf ? 2 : 1;  // channels per word
  static constexpr int kWords = kHalf ? 8 : 4;
  static constexpr int kPlanes = kChunk / (kWords * kInWord);
  static constexpr int kPlaneSize = Tile::kImages * Tile::kBordered * kWords;
  static constexpr int kInputSize = kPlanes * kPlaneSize;
  static constexpr int kTapSize = kPlanes * Tile::kChannels * kWords;
  static constexpr int kWeightSize = 3 * kTapSize;
  static constexpr size_t kBytes = 2 * (kInputSize + kWeightSize) * sizeof(float);
};

// Double buffers for inputs and weights, and the copies into them. A step is one term, one chunk of
// 16 input channels and one row ky of taps. Inputs change only every third step, when the chunk
// changes.
template <class Tile, ProductKind kind>
class Pipeline {
  using C = Chunk<Tile, kind>;

 public:
  // `swapped`: the second term is computed first.
  __device__ __forceinline__ Pipeline(const FusedConvolution& params, const Place<Tile>& place,
                                      bool swapped, float* memory)
      : params_(params),
        place_(place),
        swapped_(swapped),
        inputs_(memory),
        weights_(memory + 2 * C::kInputSize),
        chunks_(static_cast<int>(params.shape.channels) / kChunk) {
    // Both input buffers start as zeros. The border and the images beyond the batch keep them,
    // because no copy writes there.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * C::kInputSize; i += kThreads) {
      inputs_[i] = 0.0f;
    }
    __syncthreads();
    start(0);
  }

  __device__ __forceinline__ int steps() const { return params_.terms * steps_of_term(); }
  __device__ __forceinline__ int steps_of_term() const { return chunks_ * 3; }
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
  __device__ __forceinline__ const float* input(int step, int kx) const {
    return inputs_ + step / 3 % 2 * C::kInputSize + (step % 3 * Tile::kPitch + kx) * C::kWords;
  }
  __device__ __forceinline__ const float* weights(int step, int kx) const {
    return weights_ + step % 2 * C::kWeightSize + kx * C::kTapSize;
  }

 private:
  __device__ __forceinline__ void start(int step) {
    const FusedConvolutionShape& shape = params_.shape;
    // Select by comparison. A run-time index would make the compiler copy the kernel parameters to
    // local memory.
    const bool second = (step >= steps_of_term()) != swapped_;
    const float* const x = second ? params_.term[1].x : params_.term[0].x;
    const float* const packed = second ? params_.term[1].weight : params_.term[0].weight;
    const int chunk = step / 3 % chunks_;
    // floats per plane of this block's output channels
    constexpr int kOwn = Tile::kChannels * C::kWords;
    const int64_t all = shape.channels * C::kWords;
    const float* const from =
        packed + ((blockIdx.z * chunks_ + chunk) * 3 + step % 3) * (3 * C::kPlanes) * all +
        place_.first_channel * C::kWords;
    float* const to = weights_ + step % 2 * C::kWeightSize;
    for (int i = static_cast<int>(threadIdx.x) * 4; i < C::kWeightSize; i += kThreads * 4) {
      copies_.start(to + i, from + i / kOwn * all + i % kOwn);
    }
    if (step % 3 == 0) start_input(shape, x, chunk, step / 3 % 2);
    copies_.commit();
  }

  __device__ __forceinline__ void start_input(const FusedConvolutionShape& shape, const float* x,
                                              int chunk, int buffer) {
    constexpr int kPieces = kChunk / C::kInWord / 4;  // 16-byte pieces per pixel
    float* const to = inputs_ + buffer * C::kInputSize;
    for (int i = static_cast<int>(threadIdx.x); i < kBlockPixels * kPieces; i += kThreads) {
      // A warp copies 64 bytes from each of 8 neighbouring pixels, or 32 bytes from each of 16 in
      // half precision. It reads whole 32-byte sectors and writes to shared memory without bank
      // conflicts.
      const int piece = C::kHalf ? i % kPieces : i / 8 % kPieces;
      const int pixel = C::kHalf ? i / kPieces : i / (8 * kPieces) * 8 + i % 8;
      const int image = pixel / Tile::kPixels, inner = pixel % Tile::kPixels;
      if (place_.first_image + image >= shape.batch) break;
      const int bordered = image * Tile::kBordered + (inner / Tile::kSide + 1) * Tile::kPitch +
                           inner % Tile::kSide + 1;
      const int64_t number = place_.images_before + place_.first_image + image;
      const int64_t first = number * shape.image_size() + inner * shape.channels + chunk * kChunk;
      copies_.start(
          to + piece * 4 / C::kWords * C::kPlaneSize + bordered * C::kWords + piece * 4 % C::kWords,
          x + first / C::kInWord + piece * 4);
    }
  }

  const FusedConvolution& params_;
  const Place<Tile>& place_;
  const bool swapped_;
  float* const inputs_;
  float* const weights_;
  const int chunks_;
  AsyncCopies copies_;
};

}  // namespace trajmatch::cuda::fused
