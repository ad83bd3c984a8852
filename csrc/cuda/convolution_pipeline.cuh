// The two-stage shared-memory pipeline of a fused convolution block. A step covers a chunk of input
// channels and one row of three taps. The copies for the next step run while the block computes
// this one.
#pragma once

#include <cstdint>

#include "cuda/async_copy.cuh"
#include "cuda/convolution_tile.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda::fused {

// Shared-memory layout of a chunk, in pieces of 16 bytes: four float32 or eight half-precision
// channels. A chunk has four of them. Inputs: [4, pixels with a border of zeros]. Weights of one
// tap: [4, outputs]. Eight neighbouring pixels (or outputs) are then a matrix of 8 rows that
// ldmatrix reads without bank conflicts, and because of the border a tap is just an offset.
template <class Tile, ProductKind kind>
struct Chunk {
  static constexpr int kPiece = kind == ProductKind::kFp16 ? 8 : 4;  // channels
  static constexpr int kPieces = 4;
  static constexpr int kChannels = kPieces * kPiece;
  static constexpr int kPlane = Tile::kImages * Tile::kBordered;
  static constexpr int kInputSize = kPieces * kPlane;
  static constexpr int kTapSize = kPieces * Tile::kChannels;
  static constexpr int kWeightSize = 3 * kTapSize;
  static constexpr size_t kBytes = 2 * (kInputSize + kWeightSize) * sizeof(float4);
};

// Double buffers for inputs and weights, and the copies into them. The steps are: for each term,
// for each chunk, the rows ky = 0, 1, 2 of taps. Inputs change only with the chunk. The copies of
// the next chunk start in the step ky = 0.
template <class Tile, ProductKind kind>
class Pipeline {
  using C = Chunk<Tile, kind>;

 public:
  // `swapped`: the second term is computed first.
  __device__ __forceinline__ Pipeline(const FusedConvolution& params, const Place<Tile>& place,
                                      bool swapped, float4* memory)
      : params_(params),
        place_(place),
        swapped_(swapped),
        chunks_(static_cast<int>(params.shape.channels) / C::kChannels),
        pixel_(static_cast<int>(params.shape.channels) / C::kPiece),
        inputs_(memory),
        weights_(memory + 2 * C::kInputSize),
        x_(first_input(swapped)),
        w_(first_weight(swapped)),
        inputs_left_(params.terms * chunks_),
        weights_left_(params.terms * steps_of_term()) {
    // The input buffers start as zeros. The border and the images beyond the batch keep them,
    // because no copy writes there.
    for (int i = thread(); i < 2 * C::kInputSize; i += kThreads) {
      memory[i] = float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    __syncthreads();
    start_input();
    start_weights();
    copies_.commit();
  }

  __device__ __forceinline__ int steps_of_term() const { return chunks_ * 3; }
  // Waits for the copies of this step and for the products of the previous one, then starts copies
  // for later steps.
  __device__ __forceinline__ void begin() {
    copies_.template wait<0>();
    __syncthreads();
    ky_ = ky_ == 2 ? 0 : ky_ + 1;
    if (ky_ == 0) input_ = C::kInputSize - input_;
    weight_ = C::kWeightSize - weight_;
    if (ky_ == 0 && inputs_left_ > 0) start_input();
    if (weights_left_ > 0) start_weights();
    copies_.commit();
  }
  // Inputs of the tap (ky, 0) for the block's first pixel, and weights of that tap.
  __device__ __forceinline__ const float4* input() const {
    return inputs_ + input_ + ky_ * Tile::kPitch;
  }
  __device__ __forceinline__ const float4* weights() const { return weights_ + weight_; }

 private:
  __device__ __forceinline__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int channels() const {
    return static_cast<int>(params_.shape.channels);
  }

  // A thread copies one piece of every 64th pixel. A warp copies 64 bytes of each of 8 neighbouring
  // pixels: whole 32-byte sectors, and no bank conflicts in shared memory.
  static constexpr int kPixelsAtOnce = kThreads / C::kPieces;
  __device__ __forceinline__ static int piece() { return thread() / 8 % C::kPieces; }
  __device__ __forceinline__ static int pixel() {
    return thread() / (8 * C::kPieces) * 8 + thread() % 8;
  }

  // The first piece that the thread copies of a term's inputs. Select by comparison: a run-time
  // index would make the compiler copy the kernel parameters to local memory.
  __device__ __forceinline__ const float4* first_input(bool second) const {
    const float* const x = second ? params_.term[1].x : params_.term[0].x;
    const int64_t first = (place_.images_before + place_.first_image) * Tile::kPixels + pixel();
    return reinterpret_cast<const float4*>(x) + first * pixel_ + piece();
  }
  // The same of a term's weights, which are [K, chunk, ky, kx, 4, C] pieces.
  __device__ __forceinline__ const float4* first_weight(bool second) const {
    const float* const weight = second ? params_.term[1].weight : params_.term[0].weight;
    const int first =
        thread() / Tile::kChannels * channels() + place_.first_channel + thread() % Tile::kChannels;
    return reinterpret_cast<const float4*>(weight) +
           blockIdx.z * (params_.shape.weight_size() / C::kPiece) + first;
  }

  // Starts the copies of the next chunk of inputs.
  __device__ __forceinline__ void start_input() {
    const int first = (pixel() / Tile::kSide + 1) * Tile::kPitch + pixel() % Tile::kSide + 1;
    float4* const to = inputs_ + (C::kInputSize - input_) + piece() * C::kPlane + first;
    TM_UNROLL
    for (int i = 0; i < kBlockPixels / kPixelsAtOnce; ++i) {
      // The next 64 pixels are four rows of the image, or the next image.
      constexpr int kStride = Tile::kImages > 1 ? Tile::kBordered : 4 * Tile::kPitch;
      if (Tile::kImages == 1 || place_.first_image + i < params_.shape.batch) {
        copies_.start(to + i * kStride, x_ + i * kPixelsAtOnce * pixel_);
      }
    }
    x_ += C::kPieces;
    if (--inputs_left_ == chunks_) x_ = first_input(!swapped_);
  }

  // Starts the copies of the next step's weights.
  __device__ __forceinline__ void start_weights() {
    float4* const to = weights_ + (C::kWeightSize - weight_) + thread();
    const int stride = kThreads / Tile::kChannels * channels();
    TM_UNROLL
    for (int i = 0; i * kThreads < C::kWeightSize; ++i) {
      if (C::kWeightSize % kThreads == 0 || i * kThreads + thread() < C::kWeightSize) {
        copies_.start(to + i * kThreads, w_ + i * stride);
      }
    }
    w_ += 3 * C::kPieces * channels();
    if (--weights_left_ == steps_of_term()) w_ = first_weight(!swapped_);
  }

  const FusedConvolution& params_;
  const Place<Tile>& place_;
  const bool swapped_;
  const int chunks_, pixel_;  // chunks of a term; pieces of a pixel
  float4* const inputs_;
  float4* const weights_;
  // Sources of the next copies, and how many are left.
  const float4* x_;
  const float4* w_;
  int inputs_left_, weights_left_;
  // This step: its row of taps, and the offsets of its buffers. The other buffers take the next
  // copies.
  int ky_ = 2, input_ = C::kInputSize, weight_ = C::kWeightSize;
  AsyncCopies copies_;
};

}  // namespace trajmatch::cuda::fused
