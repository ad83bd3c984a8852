// How the blocks of the four passes of norm-activation-pool cover the activations [B, H, W, C].
//
// A block owns one image and a run of channels that holds whole norm groups, so that no statistic
// crosses blocks. Its threads are `lanes` neighbouring channels (x) times `rows` (y); a thread
// walks the windows of its channel, `rows` windows apart. Neighbouring lanes read and write
// neighbouring memory: a row of 8 lanes is a whole 32-byte sector, one of 32 a whole line.
//
// Two kinds of kernel per pass:
//   held     float32; groups of 1 to 32 channels, a power of two; planes so small that the threads
//            hold their pixels in registers. Activations are read once.
//   general  everything else; reads the activations once more for each sum, mostly from cache.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/norm_act_pool.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

// Threads of a block, at most. The held kernel's 512 leave a thread 128 registers, of which held
// pixels take about half; the general one's 256 leave what float64 needs.
constexpr int plane_threads(bool held) { return held ? 512 : 256; }

// What a kernel needs to know beyond the shape.
struct Tiling {
  int group_size;        // channels in a norm group; 1 without normalisation
  int channels;          // that a block owns
  int tiles;             // blocks per image
  int group_lanes;       // lanes over which a group's sums are added, a power of two
  double inverse_count;  // 1 / values in a group
};

struct Plan {
  Tiling tiling;
  bool held;
  int lanes, rows;  // of a block
  unsigned blocks;

  dim3 threads() const { return dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(rows)); }
  // For sum_over_rows of `sums` values.
  size_t shared_bytes(int sums) const {
    return sizeof(double) * static_cast<size_t>(sums * lanes * (lanes * rows / kWarpSize));
  }
};

inline int64_t divide_up(int64_t dividend, int64_t divisor) {
  return (dividend + divisor - 1) / divisor;
}

// Windows of an image: the pixels that make one output pixel, and at odd edges what is left over.
inline int64_t window_count(const NormActPoolShape& shape) {
  return shape.pooling == Pooling::kNone ? shape.pixels()
                                         : divide_up(shape.height, 2) * divide_up(shape.width, 2);
}

// The held kernel's plan, where a thread holds up to `windows_held`; false if there is none.
inline bool plan_held(const NormActPoolShape& shape, int windows_held, Plan& plan) {
  constexpr int kFewestLanes = 8;       // a whole sector
  constexpr int64_t kManyBlocks = 512;  // about four per multiprocessor of the largest GPUs
  const int size = plan.tiling.group_size;
  const bool power_of_two = (size & (size - 1)) == 0;
  if (shape.groups == 0 || shape.elementwise || !power_of_two || size > kWarpSize) return false;
  const int64_t rows = divide_up(window_count(shape), windows_held);
  for (int lanes = kWarpSize; lanes >= kFewestLanes && lanes >= size; lanes /= 2) {
    // Whole warps: at least 32 / lanes rows.
    const int64_t warp_rows = divide_up(rows, kWarpSize / lanes) * (kWarpSize / lanes);
    const int64_t tiles = divide_up(shape.channels, lanes);
    if (warp_rows * lanes > plane_threads(true)) continue;
    plan.held = true;
    plan.lanes = plan.tiling.channels = lanes;
    plan.rows = static_cast<int>(warp_rows);
    plan.tiling.tiles = static_cast<int>(tiles);
    plan.tiling.group_lanes = size;
    if (shape.batch * tiles >= kManyBlocks) break;  // else fewer lanes, more blocks
  }
  return plan.held;
}

inline void plan_general(const NormActPoolShape& shape, Plan& plan) {
  const int size = plan.tiling.group_size;
  const int64_t width = size == 1 ? shape.channels : size;
  plan.lanes = 1;
  while (plan.lanes < width && plan.lanes < kWarpSize) plan.lanes *= 2;
  plan.rows = plane_threads(false) / plan.lanes;
  plan.tiling.channels = size == 1 ? plan.lanes : size;
  plan.tiling.tiles = static_cast<int>(divide_up(shape.channels, plan.tiling.channels));
  plan.tiling.group_lanes = size == 1 ? 1 : plan.lanes;
}

// `windows_held`: windows that a thread of the held kernel holds, 0 where there is none.
inline Plan plan_blocks(const NormActPoolShape& shape, int windows_held) {
  const int64_t image = shape.pixels() * shape.channels;
  if (image > INT32_MAX) {
    throw std::length_error("trajmatch: one image has " + std::to_string(image) +
                            " activations, but the CUDA kernels number them in 32 bits");
  }
  Plan plan{};
  const int64_t size = shape.groups == 0 ? 1 : shape.channels / shape.groups;
  plan.tiling.group_size = static_cast<int>(size);
  plan.tiling.inverse_count = 1.0 / static_cast<double>(size * shape.pixels());
  if (windows_held == 0 || !plan_held(shape, windows_held, plan)) plan_general(shape, plan);
  plan.blocks = grid_size(shape.batch * plan.tiling.tiles);
  return plan;
}

// The image and the channels of the block that asks, and the group of the thread's lane.
struct Part {
  __device__ __forceinline__ Part(const NormActPoolShape& shape, const Tiling& tiling)
      : image(static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(tiling.tiles))),
        lane(static_cast<int>(threadIdx.x)),
        first(static_cast<int>(blockIdx.x % static_cast<unsigned>(tiling.tiles)) * tiling.channels),
        end(min(first + tiling.channels, static_cast<int>(shape.channels))),
        // A lane beyond the last channel takes part in sums: let it point at some group.
        group(image * shape.groups + min(first + lane, end - 1) / tiling.group_size),
        leads_group(threadIdx.y == 0 && lane % tiling.group_lanes == 0 && first + lane < end) {}

  int64_t image;
  int lane;
  int first, end;    // channels
  int64_t group;     // in [B, G]
  bool leads_group;  // this thread writes what there is one of per group
};

// Calls body(channel, active) for the channels of the thread's lane; of a block all threads the
// same number of times, so that the body may synchronise. The held kernel's block has one per lane.
template <bool held, class Body>
__device__ __forceinline__ void for_channels(const Part& part, const Body& body) {
  if constexpr (held) {
    body(part.first + part.lane, part.first + part.lane < part.end);
  } else {
    for (int c = part.first + part.lane; c - part.lane < part.end; c += blockDim.x) {
      body(c, c < part.end);
    }
  }
}

// Adds each value over the rows of the block: every thread gets its lane's sums. All threads call
// it. `shared`: lanes * warps * kCount numbers; free again on return.
template <int kCount>
__device__ __forceinline__ void sum_over_rows(double (&values)[kCount], double* shared) {
  const int lanes = static_cast<int>(blockDim.x);
  const int lane = static_cast<int>(threadIdx.x);
  const int thread = static_cast<int>(threadIdx.y) * lanes + lane;
  const int warps = lanes * static_cast<int>(blockDim.y) / kWarpSize;
  for (int step = lanes; step < kWarpSize; step *= 2) {
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kFullWarp, values[i], step);
  }
  if (thread % kWarpSize < lanes) {
    for (int i = 0; i < kCount; ++i) {
      shared[(i * warps + thread / kWarpSize) * lanes + lane] = values[i];
    }
  }
  __syncthreads();
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0.0;
    for (int warp = 0; warp < warps; ++warp) values[i] += shared[(i * warps + warp) * lanes + lane];
  }
  __syncthreads();
}

// Adds each value over the lanes of the thread's group.
template <int kCount>
__device__ __forceinline__ void sum_over_group(double (&values)[kCount], const Tiling& tiling) {
  for (int step = 1; step < tiling.group_lanes; step *= 2) {
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kFullWarp, values[i], step);
  }
}

}  // namespace trajmatch::cuda
