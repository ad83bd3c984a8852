// The operands of a block of a fused convolution on their way through shared memory: 16 input
// channels at a time, weights a row of three taps at a time, both copied one step ahead.
#pragma once

#include <cstdint>

#include "cuda/async_copy.cuh"
#include "cuda/convolution_tile.cuh"

namespace trajmatch::cuda::fused {

constexpr int kChunk = 16;  // input channels of a step

// How 16 input channels lie there: [planes, pixels with a border of zeros, words], and the weights
// of a tap [planes, outputs, words], words being floats. A tap is an offset. In float32 a plane has
// 4 channels; in half precision there is one, of 16 channels in 8 words. Four lanes to each of
// eight neighbours that read one float, or to each of four that read two, read 128 bytes in a row.
template <class Tile, ProductKind kind>
struct Chunk {
  static constexpr bool kHalf = kind == ProductKind::kFp16;
  static constexpr int kInWord = kHalf ? 2 : 1;  // channels
  static constexpr int kWords = kHalf ? 8 : 4;
  static constexpr int kPlanes = kChunk / (kWords * kInWord);
  static constexpr int kPlaneSize = Tile::kImages * Tile::kBordered * kWords;
  static constexpr int kInputSize = kPlanes * kPlaneSize;
  static constexpr int kTapSize = kPlanes * Tile::kChannels * kWords;
  static constexpr int kWeightSize = 3 * kTapSize;
  static constexpr size_t kBytes = 2 * (kInputSize + kWeightSize) * sizeof(float);
};

// The two buffers of inputs and of weights, and the copies into them, step by step. A step is a
// term, 16 of its input channels, and a row of taps.
template <class Tile, ProductKind kind>
class Pipeline {
  using C = Chunk<Tile, kind>;

 public:
  // `swapped`: the second term comes first.
  __device__ __forceinline__ Pipeline(const FusedConvolution& params, const Place<Tile>& place,
                                      bool swapped, float* memory)
      : params_(params),
        place_(place),
        swapped_(swapped),
        inputs_(memory),
        weights_(memory + 2 * C::kInputSize),
        chunks_(static_cast<int>(params.shape.channels) / kChunk) {
    // Zeros: the border, and images beyond the last one.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * C::kInputSize; i += kThreads) {
      inputs_[i] = 0.0f;
    }
    __syncthreads();
    start(0);
  }

  __device__ __forceinline__ int steps() const { return params_.terms * steps_of_term(); }
  __device__ __forceinline__ int steps_of_term() const { return chunks_ * 3; }
  // Waits for the copies of the step and starts those of the next one.
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
    // By comparison: an index that varies would put the parameters into local memory.
    const bool second = (step >= steps_of_term()) != swapped_;
    const float* const x = second ? params_.term[1].x : params_.term[0].x;
    const float* const packed = second ? params_.term[1].weight : params_.term[0].weight;
    const int chunk = step / 3 % chunks_;
    constexpr int kOwn = Tile::kChannels * C::kWords;  // floats of a plane that the block takes
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
    constexpr int kPieces = kChunk / C::kInWord / 4;  // of 16 bytes, of a pixel
    float* const to = inputs_ + buffer * C::kInputSize;
    for (int i = static_cast<int>(threadIdx.x); i < kBlockPixels * kPieces; i += kThreads) {
      // A warp copies 64 bytes of each of 8 neighbours, or 32 of each of 16: whole sectors from, no
      // conflict into.
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
