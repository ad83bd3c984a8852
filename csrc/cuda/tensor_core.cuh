// Warp-level tensor core products D += A B (mma.sync, sm_80): 16 x 8 times 8 x 8 in TF32, 16 x 16
// times 16 x 8 in half precision; and reads of their operands from shared memory (ldmatrix). The
// emulator defines its own (tests/emulator/runtime). GPUs before sm_80 lack the products: callers
// ask has_tensor_cores().
//
// Fragments, with g = lane / 4 and t = lane % 4:
//   D:      (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//   TF32 A: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4)          B: (t, g), (t + 4, g)
//   fp16 A: (g, k), (g + 8, k), (g, k + 8), (g + 8, k + 8)          B: (k, g), (k + 8, g)
//           each entry being the pair k = 2t, 2t + 1
// Operands are words of 32 bits: one TF32 number, or two halves with the first in the low bits.
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

// For kernels whose results products in TF32 may read: rounds a float32 number if `rounds`. With
// the choice inside, it takes three instructions, and around round_to_tf32() it would take seven.
__device__ __forceinline__ float rounded(bool rounds, float value) {
  const uint32_t bits = __float_as_uint(value), half = rounds ? 0x1000u : 0u;
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return __uint_as_float((finite ? bits + half : bits) & (rounds ? ~0x1fffu : ~0u));
}
__device__ __forceinline__ double rounded(bool, double value) { return value; }

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

__device__ __forceinline__ void multiply_halves(float (&d)[4], const float (&a)[4],
                                                const float (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#else
  __trap();
#endif
}

// Reads four matrices of 8 rows of 16 bytes. Lane 8 i + r has the address of row r of matrix i. A
// lane gets word t of row g of each matrix. If `transposed`, the rows are 8 halves, and a lane gets
// the halves of rows 2t and 2t + 1 in column g.
template <bool transposed = false>
__device__ __forceinline__ void load_matrices(float (&words)[4], const float4* row) {
  uint32_t w[4];
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
#define TM_LDMATRIX(form)                                                                 \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4." form "shared.b16 {%0, %1, %2, %3}, [%4];" \
               : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])                           \
               : "r"(at)                                                                  \
               : "memory")
  if constexpr (transposed) {
    TM_LDMATRIX("trans.");
  } else {
    TM_LDMATRIX("");
  }
#undef TM_LDMATRIX
  for (int i = 0; i < 4; ++i) words[i] = __uint_as_float(w[i]);
}

#else

void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]);
void multiply_halves(float (&d)[4], const float (&a)[4], const float (&b)[2]);

// Inline, so that the sanitizers of the kernels check the reads.
inline uint32_t word_of_row(const float4* row, unsigned lane, unsigned word) {
  const float4 four = *__shfl_sync(kFullWarp, row, lane);
  const float words[4] = {four.x, four.y, four.z, four.w};
  return __float_as_uint(words[word]);
}
template <bool transposed = false>
inline void load_matrices(float (&words)[4], const float4* row) {
  const unsigned g = threadIdx.x % kWarpSize / 4, t = threadIdx.x % 4;
  const auto half = [&](unsigned lane) {
    return word_of_row(row, lane, g / 2) >> g % 2 * 16 & 0xffffu;
  };
  for (unsigned i = 0; i < 4; ++i) {
    if constexpr (transposed) {
      const uint32_t low = half(8 * i + 2 * t), high = half(8 * i + 2 * t + 1);
      words[i] = __uint_as_float(low | high << 16);
    } else {
      words[i] = __uint_as_float(word_of_row(row, 8 * i + g, t));
    }
  }
}

#endif

}  // namespace trajmatch::cuda
