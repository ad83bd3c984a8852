// Sums over warps and blocks. Every order of addition is fixed, so a result depends on sizes alone:
// it has the same bits in every run, on every GPU and under every schedule of blocks. Sums over a
// grid take a second launch. No kernel waits for another block or uses atomic adds.
#pragma once

#include <type_traits>

#include "cuda/launch.cuh"

namespace trajmatch::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// Kahan sum of float32 values: the error is about one rounding, however many values are added.
// GeForce GPUs add float64 at 1/32 or 1/64 of the rate of float32. An infinite value makes the sum
// NaN.
class CompensatedSum {
 public:
  __device__ __forceinline__ CompensatedSum& operator+=(float value) {
    const float corrected = value - excess_, sum = sum_ + corrected;
    excess_ = (sum - sum_) - corrected;
    sum_ = sum;
    return *this;
  }
  __device__ __forceinline__ operator double() const {
    return static_cast<double>(sum_) - static_cast<double>(excess_);
  }

 private:
  float sum_ = 0.0f, excess_ = 0.0f;
};

// The sum of many values by one thread.
template <class T>
using LongSum = std::conditional_t<std::is_same_v<T, double>, double, CompensatedSum>;

// The sum over the 32 lanes of a warp, returned to every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(kFullWarp, value, step);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int step = kWarpSize / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Sums kCount values over a block of kThreads threads (a multiple of 32). Thread 0 gets the result.
// A second call needs a barrier before it: both use the same shared memory.
template <int kThreads, int kCount>
__device__ __forceinline__ void block_sum(double (&values)[kCount]) {
  constexpr int kWarps = kThreads / kWarpSize;
  static_assert(kThreads % kWarpSize == 0 && kWarps <= kWarpSize);
  TM_SHARED(double, partial, kCount* kWarps);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  for (int i = 0; i < kCount; ++i) {
    const double sum = warp_sum(values[i]);
    if (lane == 0) partial[i * kWarps + thread / kWarpSize] = sum;
  }
  __syncthreads();
  if (thread >= kWarpSize) return;
  for (int i = 0; i < kCount; ++i) {
    values[i] = warp_sum(lane < kWarps ? partial[i * kWarps + lane] : 0.0);
  }
}

}  // namespace trajmatch::cuda
