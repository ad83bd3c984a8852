// The tile that the passes of the first layer (core/first_layer.h) share: a block holds 16 whole
// planes of 32 x 32 values in registers.
//
// A block has 256 threads in two groups of 128. A group holds 8 of the planes. A thread holds 8
// pixels (2 rows of 4) of each plane of its group, that is, two whole pooling windows. The planes
// are y of 16 channels. In kernels with tangents they are y and y' of 8 channels, and a group then
// holds y of 4 channels, followed by y' of the same 4.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/first_layer.h"
#include "core/norm_act_pool.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda::first_layer {

constexpr int kThreads = 256;
constexpr int kGroupThreads = kThreads / 2;
constexpr int kGroupWarps = kGroupThreads / kWarpSize;
constexpr int kPlanes = FirstLayerShape::kPlanes;
constexpr int kGroupPlanes = kPlanes / 2;
constexpr int kSide = FirstLayerShape::kOutSize;
constexpr int kPooled = FirstLayerShape::kPooledSize;
constexpr float kInversePixels = 1.0f / (kSide * kSide);
// A plane with a border of one pixel. The pitch is a multiple of 4, so that float4 reads at columns
// that are multiples of 4 are aligned to 16 bytes.
constexpr int kPitch = 36;
constexpr int kBorderedSide = kSide + 2;
constexpr int kBordered = kBorderedSide * kPitch;

template <bool tangent>
constexpr int kGroupChannels = tangent ? kGroupPlanes / 2 : kGroupPlanes;

// The image and the channels of the block, and the thread's place among them.
template <bool tangent>
struct Part {
  __device__ __forceinline__ explicit Part(const FirstLayerShape& shape)
      : trajectory(blockIdx.z),
        tile(static_cast<int>(blockIdx.x % static_cast<unsigned>(shape.tiles(tangent)))),
        image(blockIdx.z * shape.batch + blockIdx.x / static_cast<unsigned>(shape.tiles(tangent))),
        first_channel(tile * 2 * kGroupChannels<tangent>),
        group(static_cast<int>(threadIdx.x) / kGroupThreads),
        row(static_cast<int>(threadIdx.x) % kGroupThreads / 8 * 2),
        column(static_cast<int>(threadIdx.x) % 8 * 4),
        channel(first_channel + group * kGroupChannels<tangent>) {}

  // Offset of the thread's first channel and first window in pooled activations [K, B, 16, 16, C].
  __device__ __forceinline__ int64_t pooled(const FirstLayerShape& shape) const {
    return image * shape.pooled_size() + (row / 2 * kPooled + column / 2) * shape.channels +
           channel;
  }
  __device__ __forceinline__ int64_t statistic(const FirstLayerShape& shape) const {
    return image * shape.channels + channel;
  }

  int64_t trajectory;
  int tile;
  int64_t image;      // counted over all trajectories
  int first_channel;  // first channel of the block
  int group, row, column;
  int channel;  // first channel of the thread
};

// Loads the image with its border into shared memory, [I, 34, 36]. Output pixel (r, q) depends on
// rows r to r + 2 and columns q to q + 2.
template <int channels>
__device__ __forceinline__ void load_image(const FirstLayerShape& shape, const float* image,
                                           float* to) {
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  for (int i = static_cast<int>(threadIdx.x); i < channels * kBordered; i += kThreads) {
    const int row = i / kPitch % kBorderedSide - padding, column = i % kPitch - padding;
    const bool inside = row >= 0 && row < size && column >= 0 && column < size;
    to[i] = inside ? image[(row * size + column) * channels + i / kBordered] : 0.0f;
  }
}

// Loads the weights of the block's planes into shared memory, [9 I, 16].
template <int taps, bool tangent>
__device__ __forceinline__ void load_weights(const Part<tangent>& part, const float* weight,
                                             const float* weight_tangent, float* to) {
  for (int i = static_cast<int>(threadIdx.x); i < taps * kPlanes; i += kThreads) {
    const int tap = i / kPlanes, group = i % kPlanes / kGroupPlanes, plane = i % kGroupPlanes;
    const int channel =
        part.first_channel + group * kGroupChannels<tangent> + plane % kGroupChannels<tangent>;
    const float* const from = plane < kGroupChannels<tangent> ? weight : weight_tangent;
    to[i] = from[channel * taps + tap];
  }
}

// Reads six neighbours in a row of a bordered plane. The first column must be a multiple of four.
__device__ __forceinline__ void load_row(const float* from, float (&row)[6]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  const float2 two = *reinterpret_cast<const float2*>(from + 4);
  row[0] = four.x, row[1] = four.y, row[2] = four.z, row[3] = four.w;
  row[4] = two.x, row[5] = two.y;
}

__device__ __forceinline__ void load_four(const float* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ __forceinline__ void store_four(float* to, const float* from) {
  *reinterpret_cast<float4*>(to) = float4{from[0], from[1], from[2], from[3]};
}

// The convolution: sets planes[n][i] to pixel i of the thread in plane n of its group.
template <int channels, bool tangent>
__device__ __forceinline__ void convolve(const Part<tangent>& part, const float* image,
                                         const float* weights, float (&planes)[kGroupPlanes][8]) {
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    TM_UNROLL
    for (int i = 0; i < 8; ++i) planes[n][i] = 0.0f;
  }
  TM_NO_UNROLL
  for (int line = 0; line < 3 * channels; ++line) {  // `line`: an input channel and a row of taps
    const float* const from =
        image + line / 3 * kBordered + (part.row + line % 3) * kPitch + part.column;
    float rows[2][6];
    load_row(from, rows[0]);
    load_row(from + kPitch, rows[1]);
    TM_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      float w[kGroupPlanes];
      const float* const tap = weights + (line * 3 + kx) * kPlanes + part.group * kGroupPlanes;
      load_four(tap, w);
      load_four(tap + 4, w + 4);
      TM_UNROLL
      for (int n = 0; n < kGroupPlanes; ++n) {
        TM_UNROLL
        for (int i = 0; i < 8; ++i) planes[n][i] += w[n] * rows[i / 4][i % 4 + kx];
      }
    }
  }
}

// Sums over the threads of each group, `count` sums per group. They are kept in shared memory,
// because registers are scarce. The object may be used again for another set of sums.
template <int count>
class PlaneSums {
 public:
  static constexpr int kSize = (kThreads / kWarpSize + 2) * count;

  __device__ __forceinline__ explicit PlaneSums(float* memory) : memory_(memory) {}

  // Adds the thread's partial sum to sum n. All threads must call it.
  __device__ __forceinline__ void add(int n, float value) const {
    const float sum = warp_sum(value);
    if (threadIdx.x % kWarpSize == 0) memory_[(2 + threadIdx.x / kWarpSize) * count + n] = sum;
  }
  // Call after the last add(), from all threads of the block.
  __device__ __forceinline__ void finish() const {
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < 2 * count) {
      const float* const shares =
          memory_ + (2 + thread / count * kGroupWarps) * count + thread % count;
      float sum = 0.0f;
      for (int warp = 0; warp < kGroupWarps; ++warp) sum += shares[warp * count];
      memory_[thread] = sum;
    }
    __syncthreads();
  }
  // Sum n for the thread's group.
  __device__ __forceinline__ float operator[](int n) const {
    return memory_[static_cast<int>(threadIdx.x) / kGroupThreads * count + n];
  }

 private:
  float* memory_;  // [2, count] sums, then [8 warps, count] shares
};

// Calls body(channels, grid) for a launch of one block per image and tile, with the number of input
// channels as a compile-time constant.
template <class Body>
void with_channels(const FirstLayerShape& shape, bool tangent, const Body& body) {
  const int64_t blocks = shape.batch * shape.tiles(tangent);
  if (blocks == 0 || shape.trajectories == 0) return;
  const dim3 grid(grid_size(blocks), 1, grid_size(shape.trajectories));
  if (shape.in_channels == 1) {
    body(std::integral_constant<int, 1>(), grid);
  } else {
    body(std::integral_constant<int, 3>(), grid);
  }
}

}  // namespace trajmatch::cuda::first_layer
