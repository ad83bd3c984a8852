// Sums over the pixels of each image and channel of a block of a fused convolution.
#pragma once

#include "cuda/convolution_tile.cuh"

namespace trajmatch::cuda::fused {

// Float32: over the lane's own pixels by the caller, then over lanes, then over the warps that
// share the image, in their order.
template <class Tile>
class ImageSums {
 public:
  static constexpr int kSize = Tile::kWarpRows * Tile::kChannels;

  // `memory`: kSize numbers, for one use.
  __device__ __forceinline__ ImageSums(const Place<Tile>& place, float* memory)
      : place_(place), memory_(memory) {}

  // The lane's share of the sum of channel e of tile n.
  __device__ __forceinline__ void add(int n, int e, float value) const {
    TM_UNROLL
    for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
      value += __shfl_xor_sync(kFullWarp, value, lanes);
    }
    if (place_.g == 0) {
      memory_[place_.warp_row * Tile::kChannels + place_.own_channel(n) + e] = value;
    }
  }
  // After all of add, by all threads.
  __device__ __forceinline__ void finish() const { __syncthreads(); }
  // Of the warp's image.
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

// Whether the lane writes what there is one of for each image and channel.
template <class Tile>
__device__ __forceinline__ bool leads_image(const FusedConvolutionShape& shape,
                                            const Place<Tile>& place) {
  return place.warp_row % Tile::kImageWarps == 0 && place.g == 0 && place.has(shape, 0);
}

// Of statistics [K, B, C].
template <class Tile>
__device__ __forceinline__ int64_t statistic(const FusedConvolutionShape& shape,
                                             const Place<Tile>& place, int n) {
  return place.global_image(0) * shape.channels + place.channel(n);
}

// Writes the mean of four pixels, of which a lane and its neighbour in the row hold two each. All
// lanes call it.
template <class Tile>
__device__ __forceinline__ void store_pooled(const FusedConvolutionShape& shape,
                                             const Place<Tile>& place, int m, int n, float first,
                                             float second, float* out) {
  first += __shfl_xor_sync(kFullWarp, first, 4);
  second += __shfl_xor_sync(kFullWarp, second, 4);
  if (place.g % 2 != 0 || !place.has(shape, m)) return;
  const int pixel = place.row(m) / 2 * (Tile::kSide / 2) + place.column(m) / 2;
  store_two(out + place.global_image(m) * (shape.image_size() / 4) + pixel * shape.channels +
                place.channel(n),
            0.25f * first, 0.25f * second);
}

}  // namespace trajmatch::cuda::fused
