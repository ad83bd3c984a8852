// The product of the fused convolutions (core/fused_convolution.h): a block holds 256 output pixels
// of 32, 64 or 128 channels in registers, whole planes of one image (S = 16) or four (S = 8).
//
// Input channels come 16 at a time, as [4 groups, pixels with a border of zeros, 4 channels] in
// shared memory: a tap is an offset, and eight neighbouring pixels are 128 bytes without conflict.
// Weights come one row of three taps at a time. Both are copied one step ahead.
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
#include "cuda/async_copy.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda::fused {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kChunk = 16;  // input channels of a step
constexpr int kGroups = kChunk / 4;
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

  static constexpr int kGroupSize = kImages * kBordered * 4;  // floats of a group of 4 channels
  static constexpr int kInputSize = kGroups * kGroupSize;
  static constexpr int kWeightSize = 3 * kChunk * kChannels;
  static constexpr size_t kBytes = 2 * (kInputSize + kWeightSize) * sizeof(float);

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

// The two buffers of inputs and of weights, and the copies into them, step by step. A step is a
// term, 16 of its input channels, and a row of taps.
template <class Tile>
class Pipeline {
 public:
  __device__ __forceinline__ Pipeline(const FusedConvolution& params, const Place<Tile>& place,
                                      float* memory)
      : params_(params),
        place_(place),
        inputs_(memory),
        weights_(memory + 2 * Tile::kInputSize),
        chunks_(static_cast<int>(params.shape.channels) / kChunk) {
    // Zeros: the border, and images beyond the last one.
    for (int i = static_cast<int>(threadIdx.x); i < 2 * Tile::kInputSize; i += kThreads) {
      inputs_[i] = 0.0f;
    }
    __syncthreads();
    start(0);
  }

  __device__ __forceinline__ int steps() const { return params_.terms * chunks_ * 3; }
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
  __device__ __forceinline__ const float* input(int step) const {
    return inputs_ + step / 3 % 2 * Tile::kInputSize;
  }
  __device__ __forceinline__ const float* weights(int step) const {
    return weights_ + step % 2 * Tile::kWeightSize;
  }

 private:
  __device__ __forceinline__ void start(int step) {
    const FusedConvolutionShape& shape = params_.shape;
    // By comparison: an index that varies would put the parameters into local memory.
    const bool second = step >= 3 * chunks_;
    const float* const x = second ? params_.term[1].x : params_.term[0].x;
    const float* const packed = second ? params_.term[1].weight : params_.term[0].weight;
    const int chunk = step / 3 % chunks_;
    const float* const from = packed + blockIdx.z * shape.weight_size() +
                              (chunk * 3 + step % 3) * 3 * kChunk * shape.channels +
                              place_.first_channel * 4;
    float* const to = weights_ + step % 2 * Tile::kWeightSize;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kWeightSize / 4; i += kThreads) {
      copies_.start(to + i * 4,
                    from + i / Tile::kChannels * shape.channels * 4 + i % Tile::kChannels * 4);
    }
    if (step % 3 == 0) start_input(shape, x + chunk * kChunk, step / 3 % 2);
    copies_.commit();
  }

  __device__ __forceinline__ void start_input(const FusedConvolutionShape& shape, const float* x,
                                              int buffer) {
    float* const to = inputs_ + buffer * Tile::kInputSize;
    for (int i = static_cast<int>(threadIdx.x); i < kBlockPixels * kGroups; i += kThreads) {
      // A warp copies 64 bytes of each of 8 neighbours: whole sectors from, no conflict into.
      const int group = i / 8 % kGroups, pixel = i / (8 * kGroups) * 8 + i % 8;
      const int image = pixel / Tile::kPixels, inner = pixel % Tile::kPixels;
      if (place_.first_image + image >= shape.batch) break;
      const int bordered = image * Tile::kBordered + (inner / Tile::kSide + 1) * Tile::kPitch +
                           inner % Tile::kSide + 1;
      const int64_t number = place_.images_before + place_.first_image + image;
      copies_.start(to + group * Tile::kGroupSize + bordered * 4,
                    x + number * shape.image_size() + inner * shape.channels + group * 4);
    }
  }

  const FusedConvolution& params_;
  const Place<Tile>& place_;
  float* const inputs_;
  float* const weights_;
  const int chunks_;
  AsyncCopies copies_;
};

// Products of one input channel at a time, by multiply-adds of the ordinary cores.
template <class Tile>
__device__ __forceinline__ void multiply_plain(const Place<Tile>& place, const float* input,
                                               const float* weights, typename Tile::Sums& sums) {
  TM_NO_UNROLL
  for (int k = 0; k < kChunk; ++k) {
    const float* const pixels = input + k / 4 * Tile::kGroupSize + k % 4;
    float x[Tile::kRowTiles][2];
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      const int at =
          place.image(m) * Tile::kBordered + place.row(m) * Tile::kPitch + place.column(m);
      x[m][0] = pixels[at * 4];
      x[m][1] = pixels[(at + Tile::kPitch) * 4];
    }
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      const float* const w = weights + (k / 4 * Tile::kChannels + place.own_channel(n)) * 4 + k % 4;
      const float first = w[0], second = w[4];
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        sums[m][n][0] += x[m][0] * first;
        sums[m][n][1] += x[m][0] * second;
        sums[m][n][2] += x[m][1] * first;
        sums[m][n][3] += x[m][1] * second;
      }
    }
  }
}

// Products of eight input channels at a time, by tensor cores.
template <class Tile, bool three>
__device__ __forceinline__ void multiply_on_tensor_cores(const Place<Tile>& place,
                                                         const float* input, const float* weights,
                                                         typename Tile::Sums& sums) {
  TM_UNROLL
  for (int k = 0; k < kChunk / 8; ++k) {
    const float* const pixels = input + 2 * k * Tile::kGroupSize + place.t;
    float high[Tile::kRowTiles][4], low[Tile::kRowTiles][4];
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      const int at =
          place.image(m) * Tile::kBordered + place.row(m) * Tile::kPitch + place.column(m);
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float x = pixels[i / 2 * Tile::kGroupSize + (at + i % 2 * Tile::kPitch) * 4];
        high[m][i] = round_to_tf32(x);
        if constexpr (three) low[m][i] = round_to_tf32(x - high[m][i]);
      }
    }
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      const int channel = (place.warp_column * Tile::kColumnTiles + n) * 8 + place.g;
      const float* const w = weights + (2 * k * Tile::kChannels + channel) * 4 + place.t;
      float weight[2] = {w[0], w[Tile::kChannels * 4]};
      if constexpr (three) {
        float rest[2];
        TM_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float whole = weight[i];
          weight[i] = round_to_tf32(whole);
          rest[i] = round_to_tf32(whole - weight[i]);
        }
        TM_UNROLL
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          multiply_tf32(sums[m][n], low[m], weight);
          multiply_tf32(sums[m][n], high[m], rest);
        }
      }
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) multiply_tf32(sums[m][n], high[m], weight);
    }
  }
}

// The products of 16 input channels at one tap, whose offset is in `input` and `weights`.
template <class Tile, ProductKind kind>
__device__ __forceinline__ void multiply(const Place<Tile>& place, const float* input,
                                         const float* weights, typename Tile::Sums& sums) {
  if constexpr (kind != ProductKind::kPlain && kHasTensorCores) {
    multiply_on_tensor_cores<Tile, kind == ProductKind::kTf32x3>(place, input, weights, sums);
  } else {
    multiply_plain(place, input, weights, sums);
  }
}

// sums = the block's part of y. Afterwards the memory is free.
template <class Tile, ProductKind kind>
__device__ __forceinline__ void convolve(const FusedConvolution& params, const Place<Tile>& place,
                                         float* memory, typename Tile::Sums& sums) {
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      TM_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
  Pipeline<Tile> pipeline(params, place, memory);
  TM_NO_UNROLL
  for (int step = 0; step < pipeline.steps(); ++step) {
    pipeline.begin(step);
    TM_NO_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      multiply<Tile, kind>(place, pipeline.input(step) + (step % 3 * Tile::kPitch + kx) * 4,
                           pipeline.weights(step) + kx * kChunk * Tile::kChannels, sums);
    }
    pipeline.end();
  }
}

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
