// Sums over the pixels of each image and channel in a fused convolution block, and the output of
// one value per image and channel or per pooling window.
#pragma once

#include "cuda/convolution_tile.cuh"

namespace trajmatch::cuda::fused {

// All sums are float32, in a fixed order: the caller adds the lane's own pixels, add() adds over
// the lanes of the warp, and mean() adds over the warps that share the image.
template <class Tile>
class ImageSums {
 public:
  static constexpr int kSize = Tile::kWarpRows * Tile::kChannels;

  // `memory`: shared memory for kSize numbers. Each object may be used for one set of sums only.
  __device__ __forceinline__ ImageSums(const Place<Tile>& place, float* memory)
      : place_(place), memory_(memory) {}

  // Adds the lane's partial sum for channel e of piece n. All lanes must call it.
  __device__ __forceinline__ void add(int n, int e, float value) const {
    TM_UNROLL
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      value += __shfl_xor_sync(kFullWarp, value, lanes);
    }
    if (place_.g == 0) {
      memory_[place_.warp_row * Tile::kChannels + place_.own_channel(n) + e] = value;
    }
  }
  // Call after the last add(), from all threads of the block.
  __device__ __forceinline__ void finish() const { __syncthreads(); }
  // The mean over the pixels of the warp's image.
  __device__ __forceinline__ float mean(int n, int e) const {
    const int first = place_.warp_row / Tile::kImageWarps * Tile::kImageWarps;
    float sum = 0.0f;
    TM_UNROLL
    for (int warp = 0; warp < Tile::kImageWarps; ++warp) {
      sum += memory_[(first + warp) * Tile::kChannels + place_.own_channel(n) + e];
    }
    return sum * (1.0f / Tile::kPixels);
  }

 private:
  const Place<Tile>& place_;
  float* const memory_;
};

// True for the lanes that write the statistics, one lane for each image and pair of channels.
template <class Tile>
__device__ __forceinline__ bool leads_image(const FusedConvolutionShape& shape,
                                            const Place<Tile>& place) {
  return place.warp_row % Tile::kImageWarps == 0 && place.g == 0 && place.has(shape, 0);
}

// Offset of the lane's first channel in statistics [K, B, C].
template <class Tile>
__device__ __forceinline__ int64_t statistic(const FusedConvolutionShape& shape,
                                             const Place<Tile>& place, int n) {
  return place.global_image(0) * shape.channels + place.channel(n);
}

// Writes the mean of a 2x2 window for two channels. The lane and its neighbour in the row hold two
// pixels of the window each; `first` and `second` are the lane's sums over its two. All lanes must
// call it. `rounds`: rounded to TF32.
template <class Tile>
__device__ __forceinline__ void store_pooled(const FusedConvolutionShape& shape,
                                             const Place<Tile>& place, int m, int n, float first,
                                             float second, bool rounds, float* out) {
  first += __shfl_xor_sync(kFullWarp, first, 4);
  second += __shfl_xor_sync(kFullWarp, second, 4);
  if (place.g % 2 != 0 || !place.has(shape, m)) return;
  const int pixel = place.row(m) / 2 * (Tile::kSide / 2) + place.column(m) / 2;
  store_two(out + place.global_image(m) * (shape.image_size() / 4) + pixel * shape.channels +
                place.channel(n),
            rounded(rounds, 0.25f * first), rounded(rounds, 0.25f * second));
}

}  // namespace trajmatch::cuda::fused
