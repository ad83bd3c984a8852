// The tile that one block of a fused convolution (core/fused_convolution.h) computes: 256 output
// pixels times 32, 64 or 128 output channels, accumulated in registers. The 256 pixels are the
// whole plane of one image (S = 16) or of four images (S = 8).
//
// Accumulators are laid out the same for every kind of product. The tile of a warp is cut into
// pieces of 16 pixels x 8 channels, where the 16 pixels are two rows of 8, one below the other.
// With g = lane / 4 and t = lane % 4, sums[m][n][2 r + e] is pixel g of row r, channel 2 t + e. A
// 2x2 pooling window is then rows r = 0, 1 of the lanes with g and g ^ 1.
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
  static constexpr int kWarpColumns = kChannels == 128 ? 2 : 1;      // warps along the channels
  static constexpr int kWarpRows = kWarps / kWarpColumns;            // warps along the pixels
  static constexpr int kRowTiles = kBlockPixels / kWarpRows / 16;    // 16-pixel pieces per warp
  static constexpr int kColumnTiles = kChannels / kWarpColumns / 8;  // 8-channel pieces per warp
  static constexpr int kImageWarps = kPixels / (16 * kRowTiles);     // warps that share an image

  using Sums = float[kRowTiles][kColumnTiles][4];
};

// The position of a thread: the tile of its warp, and its lane's place within it.
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

  // For piece m (16 pixels) of the warp: the image within the block, and the row and column of this
  // lane's first pixel.
  __device__ __forceinline__ int image(int m) const { return tile(m) * 16 / Tile::kPixels; }
  __device__ __forceinline__ int row(int m) const {
    return tile(m) * 16 % Tile::kPixels / (2 * Tile::kSide) * 2;
  }
  __device__ __forceinline__ int column(int m) const {
    return (Tile::kSide == 16 ? tile(m) % 2 * 8 : 0) + g;
  }
  // Index of the warp's first pixel in the bordered planes, one row up and one column left: the
  // input of tap (0, 0).
  __device__ __forceinline__ int first_bordered() const {
    return image(0) * Tile::kBordered + row(0) * Tile::kPitch;
  }
  // From there to the first pixel of piece m.
  __device__ __forceinline__ static constexpr int bordered_step(int m) {
    return Tile::kSide == 16 ? m / 2 * 2 * Tile::kPitch + m % 2 * 8 : m * 2 * Tile::kPitch;
  }
  // The first of the lane's two channels in piece n, counted within the block, and within all
  // channels.
  __device__ __forceinline__ int own_channel(int n) const {
    return (warp_column * Tile::kColumnTiles + n) * 8 + 2 * t;
  }
  __device__ __forceinline__ int channel(int n) const { return first_channel + own_channel(n); }
  // True if the image is within the batch.
  __device__ __forceinline__ bool has(const FusedConvolutionShape& shape, int m) const {
    return first_image + image(m) < shape.batch;
  }
  // The image's number among the images of all trajectories.
  __device__ __forceinline__ int64_t global_image(int m) const {
    return images_before + first_image + image(m);
  }
  // Offset of the lane's first pixel and channel in activations [K, B, S, S, C].
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

// Writes the thread's accumulators to y.
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

// Calls body(tile, kind) with both run-time choices as compile-time types. `precise`: true if the
// kernel has a version for kTf32x3.
template <bool precise, class Body>
void with_tile(const FusedConvolution& params, const Body& body) {
  const auto with_kind = [&](auto tile) {
    switch (params.kind) {
      case ProductKind::kTf32:
        return body(tile, std::integral_constant<ProductKind, ProductKind::kTf32>());
      case ProductKind::kTf32x3:
        if constexpr (precise && decltype(tile)::kChannels < 128) {
          return body(tile, std::integral_constant<ProductKind, ProductKind::kTf32x3>());
        }
        throw std::invalid_argument(
            "trajmatch: three TF32 products are made in the forward pass alone, by blocks of 32 or "
            "64 channels");
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
