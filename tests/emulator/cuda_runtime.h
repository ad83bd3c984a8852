// <cuda_runtime.h> for machines without a GPU: what the project's kernels use of CUDA, run on the
// CPU, so that g++ builds and runs the very source that nvcc compiles.
//
// A kernel written for it launches with TM_LAUNCH and declares shared memory with TM_SHARED and
// TM_DYNAMIC_SHARED (csrc/cuda/launch.cuh); <<<>>> and __shared__ are no C++ that g++ could read.
// What is missing here is missing on purpose: atomics and fences between blocks do not exist,
// because the kernels' results must not depend on the order of blocks.
//
// What it shows that a GPU does not: any order of warps and blocks (runtime/options.h), with a
// report of threads that wait for each other (runtime/fiber_engine.cpp); reads of shared memory
// never written (NaN); with -fsanitize=address,undefined every access out of bounds or misaligned;
// with -fsanitize=thread -DTRAJMATCH_EMULATOR_OS_THREADS races within and between blocks. What it
// cannot show: registers, speed, fused multiply-adds (nvcc contracts, g++ on x86-64 does not).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "runtime/engine.h"
#include "runtime/launch.h"
#include "runtime/options.h"
#include "runtime/types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (::emulator::current().index)
#define blockIdx (::emulator::current().block->index)
#define blockDim (::emulator::current().block->launch.block)
#define gridDim (::emulator::current().block->launch.grid)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulator::sync_block({"__syncthreads", where});
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  emulator::collect(mask, 0, 0, {"__syncwarp", where});
}

namespace emulator {

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const Site& site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t payload = 0;
  std::memcpy(&payload, &value, sizeof(T));
  const uint64_t received = collect(mask, payload, source, site).value;
  std::memcpy(&value, &received, sizeof(T));
  return value;
}

}  // namespace emulator

// Shuffles over the whole warp. A lane whose source lies beyond it keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane,
              std::source_location where = std::source_location::current()) {
  return emulator::shuffle(mask, value, lane % emulator::kWarpSize, {"__shfl_sync", where});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lanes,
                  std::source_location where = std::source_location::current()) {
  const unsigned source = (emulator::current().lane() ^ lanes) % emulator::kWarpSize;
  return emulator::shuffle(mask, value, source, {"__shfl_xor_sync", where});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes,
                   std::source_location where = std::source_location::current()) {
  const unsigned lane = emulator::current().lane();
  const unsigned source = lane + lanes < emulator::kWarpSize ? lane + lanes : lane;
  return emulator::shuffle(mask, value, source, {"__shfl_down_sync", where});
}

inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              std::source_location where = std::source_location::current()) {
  return emulator::collect(mask, predicate, 0, {"__ballot_sync", where}).ballot;
}

// The position of the lowest set bit, counted from 1; 0 where there is none.
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline uint32_t __float_as_uint(float value) {
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value = 0.0f;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int min(int a, int b) { return b < a ? b : a; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
