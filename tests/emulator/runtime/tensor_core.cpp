// The products of csrc/cuda/tensor_core.cuh, on operands that the warp's lanes exchange through
// shared memory.
#include "cuda/tensor_core.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>

namespace trajmatch::cuda {
namespace {

// The operand words of all lanes of the warp.
template <int count>
struct WarpOperands {
  explicit WarpOperands(const uint32_t (&own)[count]) {
    TM_SHARED(uint32_t, block, blockDim.x* count);
    words = block + threadIdx.x / kWarpSize * kWarpSize * count;
    __syncwarp();  // until every lane has read the operands of the product before
    std::copy_n(own, count, words + threadIdx.x % kWarpSize * count);
    __syncwarp();
  }
  const uint32_t* of(unsigned lane) const { return words + lane * count; }
  uint32_t* words;
};

// The hardware ignores the low 13 bits, which truncates numbers that were not rounded before.
uint32_t tf32_word(float value) {
  const uint32_t word = __float_as_uint(value);
  if (std::isfinite(value) && (word & 0x1fffu) != 0) {
    throw std::runtime_error("an operand of a TF32 product was not rounded to TF32");
  }
  return word & ~0x1fffu;
}

}  // namespace

void multiply_tf32(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  uint32_t own[6];
  for (int i = 0; i < 4; ++i) own[i] = tf32_word(a[i]);
  for (int i = 0; i < 2; ++i) own[4 + i] = tf32_word(b[i]);
  const WarpOperands operands(own);
  const unsigned lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  const auto value = [&](unsigned from, int i) { return __uint_as_float(operands.of(from)[i]); };
  for (unsigned k = 0; k < 4; ++k) {
    const unsigned row = g * 4 + k;
    for (unsigned e = 0; e < 2; ++e) {
      const unsigned column = (2 * t + e) * 4 + k;
      d[e] += value(row, 0) * value(column, 4) + value(row, 2) * value(column, 5);
      d[2 + e] += value(row, 1) * value(column, 4) + value(row, 3) * value(column, 5);
    }
  }
}

void multiply_halves(float (&d)[4], const float (&a)[4], const float (&b)[2]) {
  uint32_t own[6];
  for (int i = 0; i < 4; ++i) own[i] = __float_as_uint(a[i]);
  for (int i = 0; i < 2; ++i) own[4 + i] = __float_as_uint(b[i]);
  const WarpOperands operands(own);
  const unsigned lane = threadIdx.x % kWarpSize, g = lane / 4, t = lane % 4;
  for (unsigned k = 0; k < 4; ++k) {
    const uint32_t* const row = operands.of(g * 4 + k);
    for (unsigned e = 0; e < 2; ++e) {
      const uint32_t* const column = operands.of((2 * t + e) * 4 + k) + 4;
      // Words hold the pairs (k, k + 1), then (k + 8, k + 9).
      for (unsigned i = 0; i < 4; ++i) {
        const float of_column = half_value(column[i / 2] >> i % 2 * 16);
        d[e] += half_value(row[i / 2 * 2] >> i % 2 * 16) * of_column;
        d[2 + e] += half_value(row[i / 2 * 2 + 1] >> i % 2 * 16) * of_column;
      }
    }
  }
}

}  // namespace trajmatch::cuda
