// The multiply-accumulate loops of a convolution's weight gradient on tensor cores, in TF32 and in
// half precision. A call adds the products of 8 pixels (16 in half precision) for a warp's 32 input
// and 32 output channels at three taps kx. `x` and `dy` point to the warp's first channel and to
// the first pixel, which in x is the one for kx = 0.
#pragma once

#include <cstdint>

#include "cuda/tensor_core.cuh"
#include "cuda/weight_gradient_strips.cuh"

namespace trajmatch::cuda::weight_gradient {

// Accumulators. With g = lane / 4 and t = lane % 4, sums[kx][m][n][2 r + e] belongs, among the
// warp's channels, to input m * 16 + r * 8 + g and output n * 8 + 2 t + e. In half precision it
// belongs to input 4 g + 2 m + r and output 8 t + 4 e + n.
using Sums = float[3][2][4][4];

// TF32: eight pixels in a row.
template <class S>
__device__ __forceinline__ void multiply_in_tf32(const float* x, const float* dy, Sums& sums) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  float b[4][2];
  TM_UNROLL
  for (int n = 0; n < 4; ++n) {
    const int c = n * 8 + g;
    const float* const from = dy + c / 4 * S::Output::kGroup + t * 4 + c % 4;
    b[n][0] = round_to_tf32(from[0]);
    b[n][1] = round_to_tf32(from[16]);
  }
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      float a[4];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int c = m * 16 + i % 2 * 8 + g;
        a[i] = round_to_tf32(x[c / 4 * S::Input::kGroup + (t + i / 2 * 4 + kx) * 4 + c % 4]);
      }
      TM_UNROLL
      for (int n = 0; n < 4; ++n) multiply_tf32(sums[kx][m][n], a, b[n]);
    }
  }
}

// A 4 x 4 transpose in registers: turns four channels of each of four pixels, as they lie in
// memory, into words that hold two pixels of one channel.
struct PixelPairs {
  // Indexed by channel (0 to 3) and by pixels (0, 1) or (2, 3).
  uint32_t pairs[4][2];

  template <class Pixel>
  __device__ __forceinline__ explicit PixelPairs(const Pixel& pixel) {
    TM_UNROLL
    for (int k = 0; k < 2; ++k) {
      const float2 first = pixel(2 * k), second = pixel(2 * k + 1);
      turn(first.x, second.x, k, 0);
      turn(first.y, second.y, k, 2);
    }
  }

 private:
  __device__ __forceinline__ void turn(float first, float second, int k, int channel) {
    const uint32_t a = __float_as_uint(first), b = __float_as_uint(second);
    pairs[channel][k] = (a & 0xffffu) | b << 16;
    pairs[channel + 1][k] = a >> 16 | (b & 0xffff0000u);
  }
};

// fp16 on tensor cores: 16 pixels. The depth of this product is pixels, so an operand word must
// hold two pixels of one channel, but in memory a word holds two channels of one pixel. A lane
// therefore reads four channels of four pixels and transposes them. The order of rows, columns and
// depth is free as long as operands and sums agree.
template <class S>
__device__ __forceinline__ void multiply_in_halves(const float* x, const float* dy, Sums& sums) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  const auto at = [g](const float* pixel) {
    return *reinterpret_cast<const float2*>(pixel + 2 * g);
  };
  const PixelPairs outputs([&](int i) { return at(dy + (4 * i + t) * S::Output::kPixel); });
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    const PixelPairs inputs(
        [&](int i) { return at(x + (S::bordered(4 * i) + t + kx) * S::Input::kPixel); });
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      const uint32_t a[4] = {inputs.pairs[2 * m][0], inputs.pairs[2 * m + 1][0],
                             inputs.pairs[2 * m][1], inputs.pairs[2 * m + 1][1]};
      TM_UNROLL
      for (int n = 0; n < 4; ++n) multiply_halves(sums[kx][m][n], a, outputs.pairs[n]);
    }
  }
}

template <class S, ProductKind kind>
__device__ __forceinline__ void multiply(const float* x, const float* dy, Sums& sums) {
  if constexpr (kind == ProductKind::kFp16) {
    multiply_in_halves<S>(x, dy, sums);
  } else {
    multiply_in_tf32<S>(x, dy, sums);
  }
}

// Writes the sums to weights [3 taps kx, channels, channels]. `to` points to the warp's first
// channels.
template <int channels, ProductKind kind>
__device__ __forceinline__ void store(const Sums& sums, float* to) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4,
            t = static_cast<int>(threadIdx.x) % 4;
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      TM_UNROLL
      for (int r = 0; r < 2; ++r) {
        const auto& own = sums[kx][m];
        if constexpr (kind == ProductKind::kFp16) {
          float* const at = to + (kx * channels + 4 * g + 2 * m + r) * channels + 8 * t;
          TM_UNROLL
          for (int e = 0; e < 2; ++e) {
            *reinterpret_cast<float4*>(at + 4 * e) =
                float4{own[0][2 * r + e], own[1][2 * r + e], own[2][2 * r + e], own[3][2 * r + e]};
          }
        } else {
          float* const at = to + (kx * channels + m * 16 + r * 8 + g) * channels + 2 * t;
          TM_UNROLL
          for (int n = 0; n < 4; ++n) {
            *reinterpret_cast<float2*>(at + n * 8) = float2{own[n][2 * r], own[n][2 * r + 1]};
          }
        }
      }
    }
  }
}

}  // namespace trajmatch::cuda::weight_gradient
