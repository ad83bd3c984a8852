// Half-precision numbers, packed two to a 32-bit word with the first in the low bits.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace trajmatch::cuda {

// Rounds to the nearest half, ties to even. Magnitudes from 65520 on become infinity. Gives the
// same result as the instruction that two_halves uses on sm_80.
__device__ __forceinline__ uint32_t round_to_half(float value) {
  const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;  // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;
  if (magnitude < 0x38800000u) {
    // Below 2^-14, halves are 2^-24 apart. This is also the spacing of float32 numbers in [0.5, 1),
    // so adding 0.5 rounds correctly.
    return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
  }
  // Drop 13 mantissa bits, rounding ties to even, and lower the exponent by 112, the difference of
  // the biases.
  return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
}

__device__ __forceinline__ uint32_t two_halves(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return round_to_half(low) | round_to_half(high) << 16;
#endif
}

// The value of the half in the low 16 bits.
__device__ __forceinline__ float half_value(uint32_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // With float32's exponent bias of 127 instead of 15, the number reads 2^112 times too small. The
  // multiplication corrects normal and subnormal halves alike.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

}  // namespace trajmatch::cuda
