// The powers of two that scale operands in half precision (core/half_operand.h).
#pragma once

#include <cstdint>

#include "core/half_operand.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

// The exponent e that takes largest * 2^e into [2^14, 2^15), but at most 126, so that 2^e is a
// finite float32. 0 for a tensor of zeros.
__device__ __forceinline__ int scale_exponent(float largest) {
  if (largest == 0.0f) return 0;
  const int exponent = 141 - static_cast<int>(__float_as_uint(largest) >> 23);
  return exponent < 126 ? exponent : 126;
}

// The exponent for a trajectory's tensor. All lanes of a warp must call it.
__device__ __forceinline__ int scale_exponent(const float* magnitudes, int64_t trajectory) {
  static_assert(kMagnitudes == 4 * kWarpSize);
  const float4 own = reinterpret_cast<const float4*>(
      magnitudes + trajectory * kMagnitudes)[threadIdx.x % kWarpSize];
  const float low = own.x > own.y ? own.x : own.y, high = own.z > own.w ? own.z : own.w;
  return scale_exponent(warp_max(low > high ? low : high));
}

// 2^exponent for -252 <= exponent <= 252, stored as two factors that float32 can represent. Smaller
// exponents are replaced by -252. Sums of products are below 2^41, so both scale them to 0.
class PowerOfTwo {
 public:
  __device__ __forceinline__ explicit PowerOfTwo(int exponent) {
    const int kept = exponent > -252 ? exponent : -252, half = kept / 2;
    first_ = __uint_as_float(static_cast<uint32_t>(half + 127) << 23);
    second_ = __uint_as_float(static_cast<uint32_t>(kept - half + 127) << 23);
  }
  // Both factors are at least 1, or both are at most 1. The intermediate product therefore stays in
  // range wherever the final one does.
  __device__ __forceinline__ float times(float value) const { return value * first_ * second_; }
  // Scales many numbers: calls body with the first factor, then with the second. The loop is not
  // unrolled, because applying both factors at once takes twice the registers of the numbers.
  template <class Body>
  __device__ __forceinline__ void for_factors(const Body& body) const {
    TM_NO_UNROLL
    for (int i = 0; i < 2; ++i) body(i == 0 ? first_ : second_);
  }

 private:
  float first_, second_;
};

// The order and rescaling of two terms that are scaled by 2^e_0 and 2^e_1 but accumulated in one
// sum. The term with the larger exponent goes first. The sum is then scaled down to the other
// term's scale, the other term is added, and the result is brought to scale 1. Scaling up between
// the terms could overflow. One common scale would lose bits of the smaller operand.
class TermScales {
 public:
  __device__ __forceinline__ TermScales(int count, int first, int second)
      : count_(count),
        swapped_(count == 2 && second > first),
        before_(swapped_ ? second : first),
        last_(swapped_ || count == 1 ? first : second) {}

  // True if the second term goes first.
  __device__ __forceinline__ bool swapped() const { return swapped_; }
  // The factor for the sum after the term that is added first (0) or second (1).
  __device__ __forceinline__ PowerOfTwo after(int term) const {
    return PowerOfTwo(term + 1 < count_ ? last_ - before_ : -last_);
  }

 private:
  int count_;
  bool swapped_;
  int before_, last_;
};

}  // namespace trajmatch::cuda
