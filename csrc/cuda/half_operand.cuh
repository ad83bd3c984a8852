// The powers of two by which operands in half precision are scaled (core/half_operand.h).
#pragma once

#include <cstdint>

#include "core/half_operand.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

// e for which largest * 2^e is in [2^14, 2^15); at most 126, so that 2^e is a float32.
__device__ __forceinline__ int scale_exponent(float largest) {
  if (largest == 0.0f) return 0;
  const int exponent = 141 - static_cast<int>(__float_as_uint(largest) >> 23);
  return exponent < 126 ? exponent : 126;
}

// By all lanes of a warp: the exponent of the trajectory's tensor.
__device__ __forceinline__ int scale_exponent(const float* magnitudes, int64_t trajectory) {
  static_assert(kMagnitudes == 4 * kWarpSize);
  const float4 own = reinterpret_cast<const float4*>(
      magnitudes + trajectory * kMagnitudes)[threadIdx.x % kWarpSize];
  const float low = own.x > own.y ? own.x : own.y, high = own.z > own.w ? own.z : own.w;
  return scale_exponent(warp_max(low > high ? low : high));
}

// 2^exponent with -252 <= exponent <= 252, as two factors that are float32 numbers. Below that it
// is as good as -252: sums of products are below 2^41.
class PowerOfTwo {
 public:
  __device__ __forceinline__ explicit PowerOfTwo(int exponent) {
    const int kept = exponent > -252 ? exponent : -252, half = kept / 2;
    first_ = __uint_as_float(static_cast<uint32_t>(half + 127) << 23);
    second_ = __uint_as_float(static_cast<uint32_t>(kept - half + 127) << 23);
  }
  // Both factors go the same way: what the product holds, the step between them holds.
  __device__ __forceinline__ float times(float value) const { return value * first_ * second_; }
  // The same for many numbers at once, one factor after the other. In one go it would take twice
  // the registers of the numbers.
  template <class Body>
  __device__ __forceinline__ void for_factors(const Body& body) const {
    TM_NO_UNROLL
    for (int i = 0; i < 2; ++i) body(i == 0 ? first_ : second_);
  }

 private:
  float first_, second_;
};

// Two terms that are scaled by 2^e_0 and 2^e_1, in one sum. The one scaled by more comes first; the
// sum is scaled down to the other before that is added, and up or down to 1 in the end. Scaling up
// between the terms could overflow, and one scale for both would lose bits of the smaller operand.
class TermScales {
 public:
  __device__ __forceinline__ TermScales(int count, int first, int second)
      : count_(count),
        swapped_(count == 2 && second > first),
        before_(swapped_ ? second : first),
        last_(swapped_ || count == 1 ? first : second) {}

  // Whether the second term comes first.
  __device__ __forceinline__ bool swapped() const { return swapped_; }
  // What the sum is multiplied by after the term that came first (0) or second (1).
  __device__ __forceinline__ PowerOfTwo after(int term) const {
    return PowerOfTwo(term + 1 < count_ ? last_ - before_ : -last_);
  }

 private:
  int count_;
  bool swapped_;
  int before_, last_;
};

}  // namespace trajmatch::cuda
