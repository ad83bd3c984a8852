// Warp-level tensor core products D += A B (mma.sync, sm_80): 16 x 8 times 8 x 8 in TF32, 16 x 16
// times 16 x 8 in half precision. The emulator defines its own (tests/emulator/runtime). Older GPUs
// have neither: callers ask has_tensor_cores().
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

#ifdef __CUDACC__

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

// Every operand word holds two halves.
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

#else

void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]);
void multiply_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#endif

}  // namespace trajmatch::cuda
