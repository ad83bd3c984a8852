// What a block of the fused convolutions (core/fused_convolution.h) makes: 256 output pixels of 32,
// 64 or 128 channels in registers, whole planes of one image (S = 16) or four (S = 8).
//
// Accumulators, of every kind of product: a warp's tile is cut into 16 pixels x 8 channels, 16
// pixels being two rows of 8, one below the other. With g = lane / 4 and t = lane % 4,
// sums[m][n][2 r + e] is pixel g of row r, channel 2 t + e. So a pooling window is rows r = 0, 1
// of the lanes g and g ^ 1.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "core/fused_convolution.h"
#include "core/norm_act_pool.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda::fused {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBlockPixels = 256;

template <int side_, int channels_>
struct Tile {
  static constexpr int kSide = side_;
  static constexpr int kChannels = channels_;
  static constexpr int kPixels = kSide * kSide;
  static constexpr int kImages = kBlockPixels / kPixels;
  static constexpr int kPitch = kSide + 2;
  static constexpr int kBordered = kPitch * kPitch;
  static constexpr int kWarpColumns = kChannels == 128 ? 2 : 1;    // warps side by side in channels
  static constexpr int kWarpRows = kWarps / kWarpColumns;          // and in pixels
  static constexpr int kRowTiles = kBlockPixels / kWarpRows / 16;  // of 16 pixels, of a warp
  static constexpr int kColumnTiles = kChannels / kWarpColumns / 8;  // of 8 channels
  static constexpr int kImageWarps = kPixels / (16 * kRowTiles);  // one below the other in an image

  using Sums = float[kRowTiles][kColumnTiles][4];
};

// Where a thread is: its warp's tile, and its place in it.
template <class Tile>
struct Place {
  __device__ __forceinline__ explicit Place(const FusedConvolutionShape& shape)
      : warp_row(static_cast<int>(threadIdx.x) / kWarpSize % Tile::kWarpRows),
        warp_column(static_cast<int>(threadIdx.x) / kWarpSize / Tile::kWarpRows),
        g(static_cast<int>(threadIdx.x) % kWarpSize / 4),
        t(static_cast<int>(threadIdx.x) % 4),
        first_channel(static_cast<int>(blockIdx.y) * Tile::kChannels),
        first_image(static_cast<int64_t>(blockIdx.x) * Tile::kImages),
        images_before(blockIdx.z * shape.batch) {}

  // Of the tile of 16 pixels number m of the warp: the image in the block, and the first row and
  // the column of this lane.
  __device__ __forceinline__ int image(int m) const { return tile(m) * 16 / Tile::kPixels; }
  __device__ __forceinline__ int row(int m) const {
    return tile(m) * 16 % Tile::kPixels / (2 * Tile::kSide) * 2;
  }
  __device__ __forceinline__ int column(int m) const {
    return (Tile::kSide == 16 ? tile(m) % 2 * 8 : 0) + g;
  }
  // The same as a pixel of the block's planes with their border, one row and column further up.
  __device__ __forceinline__ int bordered(int m) const {
    return image(m) * Tile::kBordered + row(m) * Tile::kPitch + column(m);
  }
  // Channel 0 of the two neighbours that the lane holds of tile n; in the block, and in all.
  __device__ __forceinline__ int own_channel(int n) const {
    return (warp_column * Tile::kColumnTiles + n) * 8 + 2 * t;
  }
  __device__ __forceinline__ int channel(int n) const { return first_channel + own_channel(n); }
  // Whether the image exists, and its number among all trajectories' images.
  __device__ __forceinline__ bool has(const FusedConvolutionShape& shape, int m) const {
    return first_image + image(m) < shape.batch;
  }
  __device__ __forceinline__ int64_t global_image(int m) const {
    return images_before + first_image + image(m);
  }
  // Of an activation [K, B, S, S, C].
  __device__ __forceinline__ int64_t offset(const FusedConvolutionShape& shape, int m,
                                            int n) const {
    return global_image(m) * shape.image_size() +
           (row(m) * Tile::kSide + column(m)) * shape.channels + channel(n);
  }

  int warp_row, warp_column, g, t;
  int first_channel;
  int64_t first_image, images_before;

 private:
  __device__ __forceinline__ int tile(int m) const { return warp_row * Tile::kRowTiles + m; }
};

__device__ __forceinline__ void store_two(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = float2{first, second};
}

// Writes the block's part of y.
template <class Tile>
__device__ __forceinline__ void store(const FusedConvolutionShape& shape, const Place<Tile>& place,
                                      const typename Tile::Sums& sums, float* y) {
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    if (!place.has(shape, m)) continue;
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      float* const to = y + place.offset(shape, m, n);
      store_two(to, sums[m][n][0], sums[m][n][1]);
      store_two(to + Tile::kSide * shape.channels, sums[m][n][2], sums[m][n][3]);
    }
  }
}

// Calls body(tile, kind) with both as types of constants, for what the parameters say. `precise`:
// whether the kernel exists with three products.
template <bool precise, class Body>
void with_tile(const FusedConvolution& params, const Body& body) {
  const auto with_kind = [&](auto tile) {
    switch (params.kind) {
      case ProductKind::kPlain:
        return body(tile, std::integral_constant<ProductKind, ProductKind::kPlain>());
      case ProductKind::kTf32:
        return body(tile, std::integral_constant<ProductKind, ProductKind::kTf32>());
      case ProductKind::kTf32x3:
        if constexpr (precise) {
          return body(tile, std::integral_constant<ProductKind, ProductKind::kTf32x3>());
        }
        throw std::invalid_argument(
            "trajmatch: three TF32 products are made in the forward pass alone");
      case ProductKind::kFp16:
        return body(tile, std::integral_constant<ProductKind, ProductKind::kFp16>());
    }
  };
  const auto with_channels = [&](auto side) {
    switch (params.tile_channels) {
      case 128:
        return with_kind(Tile<side(), 128>());
      case 64:
        return with_kind(Tile<side(), 64>());
      case 32:
        return with_kind(Tile<side(), 32>());
      default:
        throw std::invalid_argument(
            "trajmatch: a block of a fused convolution has 32, 64 or 128 "
            "channels, not " +
            std::to_string(params.tile_channels));
    }
  };
  if (params.shape.size == 16) {
    with_channels(std::integral_constant<int, 16>());
  } else {
    with_channels(std::integral_constant<int, 8>());
  }
}

inline dim3 grid_of(const FusedConvolution& params) {
  return dim3(grid_size(params.shape.image_blocks()),
              static_cast<unsigned>(params.shape.channels / params.tile_channels),
              grid_size(params.shape.trajectories));
}

}  // namespace trajmatch::cuda::fused
