// Warp-level tensor core products D += A B (mma.sync, sm_80): 16 x 8 times 8 x 8 in TF32, 16 x 16
// times 16 x 8 in half precision. The emulator computes them with warp shuffles. Older GPUs have
// neither: callers ask has_tensor_cores().
//
// Fragments, with g = lane / 4 and t = lane % 4:
//   D:      (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   TF32 A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)          B: (t, g), (t + 4, g)
//   fp16 A: (g, k), (g + 8, k), (g, k + 8), (g + 8, k + 8)          B: (k, g), (k + 8, g)
//           each entry being the pair k = 2t, 2t + 1
#pragma once

#include <cstdint>

#include "cuda/half_precision.cuh"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

// Rounds to the nearest number with 10 mantissa bits, ties away from zero.
__device__ __forceinline__ float round_to_tf32(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#else
  const uint32_t bits = __float_as_uint(value);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return finite ? __uint_as_float((bits + 0x1000u) & ~0x1fffu) : value;
#endif
}

#ifndef __CUDACC__

__device__ __forceinline__ void multiply_tf32(float (&d)[4], const float (&a)[4],
                                              const float (&b)[2]) {
  const unsigned lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  // Reads two operands of another lane. Clears their low 13 bits, which the hardware ignores.
  const auto read = [](float first, float second, unsigned from) {
    const float2 both = __shfl_sync(kFullWarp, float2{first, second}, from);
    return float2{__uint_as_float(__float_as_uint(both.x) & ~0x1fffu),
                  __uint_as_float(__float_as_uint(both.y) & ~0x1fffu)};
  };
  for (unsigned k = 0; k < 4; ++k) {
    const float2 near = read(a[0], a[1], g * 4 + k), far = read(a[2], a[3], g * 4 + k);
    for (unsigned e = 0; e < 2; ++e) {
      const float2 column = read(b[0], b[1], (2 * t + e) * 4 + k);
      d[e] += near.x * column.x + far.x * column.y;
      d[2 + e] += near.y * column.x + far.y * column.y;
    }
  }
}

// Every operand word holds two halves.
__device__ __forceinline__ void multiply_halves(float (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
  struct Four {
    float values[4];
  };
  // Two operand words of another lane: the pair (k, k + 1) of the first word, then that of the
  // second.
  const auto read = [](uint32_t first, uint32_t second, unsigned from) {
    const unsigned long long both = __shfl_sync(
        kFullWarp, static_cast<unsigned long long>(second) << 32 | first, static_cast<int>(from));
    const uint32_t low = static_cast<uint32_t>(both), high = static_cast<uint32_t>(both >> 32);
    return Four{half_value(low), half_value(low >> 16), half_value(high), half_value(high >> 16)};
  };
  const unsigned lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  for (unsigned k = 0; k < 4; ++k) {
    const Four row = read(a[0], a[2], g * 4 + k), row_below = read(a[1], a[3], g * 4 + k);
    for (unsigned e = 0; e < 2; ++e) {
      const Four column = read(b[0], b[1], (2 * t + e) * 4 + k);
      for (unsigned i = 0; i < 4; ++i) {
        d[e] += row.values[i] * column.values[i];
        d[2 + e] += row_below.values[i] * column.values[i];
      }
    }
  }
}

#else

__device__ __forceinline__ void multiply_tf32(float (&d)[4], const float (&a)[4],
                                              const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  __trap();
#endif
}

__device__ __forceinline__ void multiply_halves(float (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

#endif

}  // namespace trajmatch::cuda
