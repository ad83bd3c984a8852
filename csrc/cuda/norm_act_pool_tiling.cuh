// How the blocks of the four passes of norm-activation-pool cover the activations [B, H, W, C].
//
// A block owns one image, or a part of its pixels, and a range of channels made of whole norm
// groups. Its threads are `lanes` neighbouring channels (x) times `rows` (y). A thread walks the
// windows of its channel, `rows` windows apart (times the parts of the image). Neighbouring lanes
// access neighbouring memory: a row of 8 float32 lanes is a whole 32-byte sector, and a row of 32
// is a whole cache line.
//
// Each pass has two kinds of kernel:
//   held     keeps the pixels in registers and reads the activations once. It needs float32, a norm
//            with groups of 1 to 32 channels (a power of two), one weight per channel, and a plane
//            small enough for the registers of a block.
//   general  everything else. It reads the activations again for each sum, mostly from cache. If
//            images and channels are few, several blocks share the pixels of an image. Each launch
//            but the last stores one sum per block; later launches add these up.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/norm_act_pool.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

// Threads per block, at most. With 512 threads each has 128 registers, of which the held pixels
// take about half. Float64 needs more, so 256 threads.
template <class T>
constexpr int kPlaneThreads = sizeof(T) == sizeof(float) ? 512 : 256;

constexpr int kFewestLanes = 8;  // one whole 32-byte sector of float32
// With fewer blocks than this, a block takes fewer lanes. 512 is about four per multiprocessor of
// the largest GPUs.
constexpr int64_t kManyBlocks = 512;

constexpr int kWhole = -1;  // the phase of a pass that takes a single launch

// Launch parameters of a kernel besides the shape.
struct Tiling {
  int group_size;        // channels in a norm group; 1 without normalisation
  int channels;          // channels that a block owns
  int tiles;             // channel ranges per image
  int group_lanes;       // lanes over which a group's sums are added, a power of two
  double inverse_count;  // 1 / values in a group
  int parts = 1;         // blocks that share the pixels of an image
  int phase = kWhole;    // kWhole, or the launch's number, which is that of the sum it stores; the
                         // last stores none
  double* sums = nullptr;  // [B, parts, 4, C]
};

struct Plan {
  Tiling tiling;
  bool held;
  int lanes, rows;  // threads of a block: lanes times rows
  unsigned blocks;

  dim3 threads() const { return dim3(static_cast<unsigned>(lanes), static_cast<unsigned>(rows)); }
  // The shared memory that sum_over_rows needs for `sums` values.
  size_t shared_bytes(int sums) const {
    return sizeof(double) * static_cast<size_t>(sums * lanes * (lanes * rows / kWarpSize));
  }
};

inline int64_t divide_up(int64_t dividend, int64_t divisor) {
  return (dividend + divisor - 1) / divisor;
}

// Windows per image. A window is the pixels that make one output pixel. At odd edges the leftover
// pixels also form windows.
inline int64_t window_count(const NormActPoolShape& shape) {
  return shape.pooling == Pooling::kNone ? shape.pixels()
                                         : divide_up(shape.height, 2) * divide_up(shape.width, 2);
}

// Plans the held kernel, for up to `windows_held` windows per thread. False if the shape does not
// fit.
inline bool plan_held(const NormActPoolShape& shape, int windows_held, Plan& plan) {
  const int size = plan.tiling.group_size;
  const bool power_of_two = (size & (size - 1)) == 0;
  if (shape.groups == 0 || shape.elementwise || !power_of_two || size > kWarpSize) return false;
  const int64_t rows = divide_up(window_count(shape), windows_held);
  for (int lanes = kWarpSize; lanes >= kFewestLanes && lanes >= size; lanes /= 2) {
    // Round up to whole warps: rows must be a multiple of 32 / lanes.
    const int64_t warp_rows = divide_up(rows, kWarpSize / lanes) * (kWarpSize / lanes);
    const int64_t tiles = divide_up(shape.channels, lanes);
    if (warp_rows * lanes > kPlaneThreads<float>) continue;
    plan.held = true;
    plan.lanes = plan.tiling.channels = lanes;
    plan.rows = static_cast<int>(warp_rows);
    plan.tiling.tiles = static_cast<int>(tiles);
    plan.tiling.group_lanes = size;
    if (shape.images() * tiles >= kManyBlocks) break;  // otherwise try fewer lanes, for more blocks
  }
  return plan.held;
}

inline void plan_general(const NormActPoolShape& shape, int threads, Plan& plan) {
  const int size = plan.tiling.group_size;
  const int64_t width = size == 1 ? shape.channels : size;
  plan.lanes = 1;
  while (plan.lanes < width && plan.lanes < kWarpSize) plan.lanes *= 2;
  if (size == 1) {
    const auto blocks = [&] {
      return plan.tiling.parts * shape.images() * divide_up(shape.channels, plan.lanes);
    };
    while (plan.lanes > kFewestLanes && blocks() < kManyBlocks) plan.lanes /= 2;
  }
  plan.rows = threads / plan.lanes;
  plan.tiling.channels = size == 1 ? plan.lanes : size;
  plan.tiling.tiles = static_cast<int>(divide_up(shape.channels, plan.tiling.channels));
  plan.tiling.group_lanes = size == 1 ? 1 : plan.lanes;
}

// `windows_held`: windows per thread of the held kernel, or 0 if there is no held kernel.
// `threads`: those of a block of the general kernel. `sums`: workspace for shared images, or null.
inline Plan plan_blocks(const NormActPoolShape& shape, int windows_held, int threads,
                        double* sums) {
  const int64_t image = shape.pixels() * shape.channels;
  if (image > INT32_MAX) {
    throw std::length_error("trajmatch: one image has " + std::to_string(image) +
                            " activations, but the CUDA kernels number them in 32 bits");
  }
  Plan plan{};
  const int64_t size = shape.groups == 0 ? 1 : shape.channels / shape.groups;
  plan.tiling.group_size = static_cast<int>(size);
  plan.tiling.inverse_count = 1.0 / static_cast<double>(size * shape.pixels());
  if (windows_held == 0 || !plan_held(shape, windows_held, plan)) {
    if (sums != nullptr) plan.tiling.parts = static_cast<int>(shape.parts());
    plan.tiling.sums = sums;
    plan_general(shape, threads, plan);
  }
  plan.blocks = grid_size(shape.images() * plan.tiling.tiles * plan.tiling.parts);
  return plan;
}

// The image and channels of the block, and the norm group of the thread's lane.
struct Part {
  // `parts_`: tiling.parts; the held kernel passes the constant 1.
  __device__ __forceinline__ Part(const NormActPoolShape& shape, const Tiling& tiling, int parts_)
      : parts(parts_),
        number(static_cast<int>(blockIdx.x / tiles(tiling) % static_cast<unsigned>(parts))),
        image(static_cast<int64_t>(blockIdx.x / tiles(tiling) / static_cast<unsigned>(parts))),
        lane(static_cast<int>(threadIdx.x)),
        first(static_cast<int>(blockIdx.x % tiles(tiling)) * tiling.channels),
        end(min(first + tiling.channels, static_cast<int>(shape.channels))),
        // A lane beyond the last channel still takes part in the sums and needs a valid group.
        group(image * shape.groups + min(first + lane, end - 1) / tiling.group_size),
        leads_group(number == 0 && threadIdx.y == 0 && lane % tiling.group_lanes == 0 &&
                    first + lane < end),
        parameters(static_cast<unsigned>(image) / static_cast<unsigned>(shape.batch) *
                   shape.parameter_stride) {}

  // The thread's first window, and the step to its next one.
  __device__ __forceinline__ int first_window() const {
    return number * static_cast<int>(blockDim.y) + static_cast<int>(threadIdx.y);
  }
  __device__ __forceinline__ int window_step() const {
    return parts * static_cast<int>(blockDim.y);
  }

  int parts;      // blocks that share the image
  int number;     // of this block among them, from 0
  int64_t image;  // counted over all trajectories
  int lane;
  int first, end;      // channels
  int64_t group;       // in [B, G]
  bool leads_group;    // this thread writes the group's statistics
  int64_t parameters;  // offset of the parameters of the image's trajectory

 private:
  __device__ __forceinline__ static unsigned tiles(const Tiling& tiling) {
    return static_cast<unsigned>(tiling.tiles);
  }
};

// Calls body(channel, active) for the channels of the thread's lane. All threads of a block make
// the same number of calls, so the body may synchronise. In the held kernel each lane has one
// channel.
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

// Sums each value over the rows of the block. Every thread gets the sums of its lane. All threads
// must call it. `shared` holds lanes * warps * kCount numbers and may be used again on return.
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

// Adds the threads' sums over the pixels. In the launch that stores sum `which`, stores the block's
// sum under `channel` and returns false. Otherwise returns true, with the lane's sums over the
// image in `values`; later launches read them from the workspace. All threads must call it.
template <bool held, int kCount>
__device__ __forceinline__ bool finish_sums(double (&values)[kCount], int which, int channel,
                                            bool active, const NormActPoolShape& shape,
                                            const Part& part, const Tiling& tiling,
                                            double* shared) {
  if (held || part.parts == 1) {
    sum_over_rows(values, shared);
    return true;
  }
  double* const stored =
      tiling.sums + (part.image * part.parts * 4 + which) * shape.channels + channel;
  const int64_t of_part = 4 * shape.channels;
  if (tiling.phase > which && active) {
    for (int other = static_cast<int>(threadIdx.y); other < part.parts;
         other += static_cast<int>(blockDim.y)) {
      for (int i = 0; i < kCount; ++i) {
        values[i] += stored[other * of_part + i * shape.channels];
      }
    }
  }
  sum_over_rows(values, shared);
  if (tiling.phase != which) return true;
  if (active && threadIdx.y == 0) {
    for (int i = 0; i < kCount; ++i) {
      stored[part.number * of_part + i * shape.channels] = values[i];
    }
  }
  return false;
}

// Sums each value over the lanes of the thread's norm group. All threads must call it.
template <int kCount>
__device__ __forceinline__ void sum_over_group(double (&values)[kCount], const Tiling& tiling) {
  for (int step = 1; step < tiling.group_lanes; step *= 2) {
    for (int i = 0; i < kCount; ++i) values[i] += __shfl_xor_sync(kFullWarp, values[i], step);
  }
}

}  // namespace trajmatch::cuda
