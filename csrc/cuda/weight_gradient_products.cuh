// The multiply-accumulate loops of a convolution's weight gradient on tensor cores, in TF32 and in
// half precision. A call adds the products of 8 pixels (16 in half precision) for a warp's 32 input
// and 32 output channels at three taps kx. These products sum over pixels, but shared memory keeps
// the channels of a pixel together.
#pragma once

#include <cstdint>

#include "cuda/tensor_core.cuh"
#include "cuda/weight_gradient_strips.cuh"

namespace trajmatch::cuda::weight_gradient {

// Accumulators. With g = lane / 4 and t = lane % 4, sums[kx][m][n][2 r + e] belongs, among the
// warp's channels, to input m * 16 + row_of(r) and output n * 8 + 2 t + e.
using Sums = float[3][2][4][4];

// The order of the rows is free as long as operands and sums agree. In TF32, a lane has two
// neighbouring channels, which it reads at once.
template <bool half>
__device__ __forceinline__ int row_of(int r) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4;
  return half ? r * 8 + g : 2 * g + r;
}

// Offsets at which the lane reads, in floats from the first pixel of a product and the first
// channel of the warp.
template <class S>
struct LanePlaces {
  __device__ __forceinline__ LanePlaces() {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize, matrix = lane / 8;
    if constexpr (S::kHalf) {
      // Rows of ldmatrix are pixels. Of the four matrices, two are pixels 8 to 15 and two the next
      // eight channels.
      x = (S::bordered(8) * (matrix / 2) + lane % 8) * S::Input::kPixel + matrix % 2 * 4;
      dy = (8 * (matrix % 2) + lane % 8) * S::Output::kPixel + matrix / 2 * 4;
    } else {
      x = 2 * (lane % 4) * S::Input::kPixel + row_of<false>(0);
      dy = 2 * (lane % 4) * S::Output::kPixel + lane / 4;
    }
  }
  int x, dy;
};

// TF32: eight pixels in a row. k = t of the product is pixel 2 t, and k = t + 4 is pixel 2 t + 1.
// The inputs of the three taps kx are then four neighbouring pixels.
template <class S>
__device__ __forceinline__ void multiply_in_tf32(const float* x, const float* dy, Sums& sums) {
  float b[4][2];
  TM_UNROLL
  for (int n = 0; n < 4; ++n) {
    b[n][0] = dy[n * 8];
    b[n][1] = dy[n * 8 + S::Output::kPixel];
  }
  TM_UNROLL
  for (int m = 0; m < 2; ++m) {
    float2 inputs[4];
    TM_UNROLL
    for (int i = 0; i < 4; ++i) {
      inputs[i] = *reinterpret_cast<const float2*>(x + i * S::Input::kPixel + m * 16);
    }
    TM_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      const float a[4] = {inputs[kx].x, inputs[kx].y, inputs[kx + 1].x, inputs[kx + 1].y};
      TM_UNROLL
      for (int n = 0; n < 4; ++n) multiply_tf32(sums[kx][m][n], a, b[n]);
    }
  }
}

// Half precision: 16 pixels. ldmatrix transposes, so that a word has two pixels of one channel.
template <class S>
__device__ __forceinline__ void multiply_in_halves(const float* x, const float* dy, Sums& sums) {
  const auto load = [](float (&words)[4], const float* from) {
    load_matrices<true>(words, reinterpret_cast<const float4*>(from));
  };
  float outputs[2][4];  // b of n = 0 and 1, then of 2 and 3
  TM_UNROLL
  for (int i = 0; i < 2; ++i) load(outputs[i], dy + i * 8);
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      float a[4];
      load(a, x + kx * S::Input::kPixel + m * 8);
      TM_UNROLL
      for (int n = 0; n < 4; ++n) {
        const float b[2] = {outputs[n / 2][n % 2 * 2], outputs[n / 2][n % 2 * 2 + 1]};
        multiply_halves(sums[kx][m][n], a, b);
      }
    }
  }
}

template <class S>
__device__ __forceinline__ void multiply(const float* x, const float* dy, Sums& sums) {
  if constexpr (S::kHalf) {
    multiply_in_halves<S>(x, dy, sums);
  } else {
    multiply_in_tf32<S>(x, dy, sums);
  }
}

// Writes the sums to weights [3 taps kx, channels, channels]. `to` points to the warp's first
// channels.
template <int channels, bool half>
__device__ __forceinline__ void store(const Sums& sums, float* to) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  TM_UNROLL
  for (int kx = 0; kx < 3; ++kx) {
    TM_UNROLL
    for (int m = 0; m < 2; ++m) {
      TM_UNROLL
      for (int r = 0; r < 2; ++r) {
        float* const at = to + (kx * channels + m * 16 + row_of<half>(r)) * channels + 2 * t;
        TM_UNROLL
        for (int n = 0; n < 4; ++n) {
          const float* const own = sums[kx][m][n] + 2 * r;
          *reinterpret_cast<float2*>(at + n * 8) = float2{own[0], own[1]};
        }
      }
    }
  }
}

}  // namespace trajmatch::cuda::weight_gradient
