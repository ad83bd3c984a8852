// The multiply-accumulate loops of a fused convolution block on tensor cores, in TF32 and in half
// precision, and the loop over all pipeline steps.
#pragma once

#include <cstdint>

#include "cuda/convolution_pipeline.cuh"
#include "cuda/half_operand.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda::fused {

// TF32, eight input channels at a time. With `three`, each operand is split into a
// high and a low TF32 part, and three of the four products are added: low * high, high * low and
// then high * high. The result is as exact as float32.
template <class Tile, bool three>
__device__ __forceinline__ void multiply_in_tf32(const Place<Tile>& place, const float* input,
                                                 const float* weights, typename Tile::Sums& sums) {
  constexpr int kPlaneSize = Chunk<Tile, ProductKind::kTf32>::kPlaneSize;
  TM_UNROLL
  for (int k = 0; k < kChunk / 8; ++k) {
    const float* const pixels = input + 2 * k * kPlaneSize + place.t;
    float high[Tile::kRowTiles][4], low[Tile::kRowTiles][4];
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      const int at = place.bordered(m);
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float x = pixels[i / 2 * kPlaneSize + (at + i % 2 * Tile::kPitch) * 4];
        high[m][i] = round_to_tf32(x);
        if constexpr (three) low[m][i] = round_to_tf32(x - high[m][i]);
      }
    }
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      const int channel = (place.warp_column * Tile::kColumnTiles + n) * 8 + place.g;
      const float* const w = weights + (2 * k * Tile::kChannels + channel) * 4 + place.t;
      float weight[2] = {w[0], w[Tile::kChannels * 4]};
      if constexpr (three) {
        float rest[2];
        TM_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float whole = weight[i];
          weight[i] = round_to_tf32(whole);
          rest[i] = round_to_tf32(whole - weight[i]);
        }
        TM_UNROLL
        for (int m = 0; m < Tile::kRowTiles; ++m) {
          multiply_tf32(sums[m][n], low[m], weight);
          multiply_tf32(sums[m][n], high[m], rest);
        }
      }
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) multiply_tf32(sums[m][n], high[m], weight);
    }
  }
}

// fp16 on tensor cores, 16 input channels at a time. The order of the channels along the depth of
// the product is free as long as A and B agree. Lane t takes channels 4 t to 4 t + 3, because these
// are one 8-byte read.
template <class Tile>
__device__ __forceinline__ void multiply_in_halves(const Place<Tile>& place, const float* input,
                                                   const float* weights,
                                                   typename Tile::Sums& sums) {
  constexpr int kWords = Chunk<Tile, ProductKind::kFp16>::kWords;
  const auto read = [&place](const float* first) {
    return *reinterpret_cast<const float2*>(first + 2 * place.t);
  };
  uint32_t pixels[Tile::kRowTiles][4];
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    const int at = place.bordered(m);
    const float2 above = read(input + at * kWords);
    const float2 below = read(input + (at + Tile::kPitch) * kWords);
    pixels[m][0] = __float_as_uint(above.x);
    pixels[m][1] = __float_as_uint(below.x);
    pixels[m][2] = __float_as_uint(above.y);
    pixels[m][3] = __float_as_uint(below.y);
  }
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    const int channel = (place.warp_column * Tile::kColumnTiles + n) * 8 + place.g;
    const float2 of_channel = read(weights + channel * kWords);
    const uint32_t weight[2] = {__float_as_uint(of_channel.x), __float_as_uint(of_channel.y)};
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) multiply_halves(sums[m][n], pixels[m], weight);
  }
}

// Adds the products of 16 input channels at one tap. `input` and `weights` already include the
// offset of the tap.
template <class Tile, ProductKind kind>
__device__ __forceinline__ void multiply(const Place<Tile>& place, const float* input,
                                         const float* weights, typename Tile::Sums& sums) {
  if constexpr (kind == ProductKind::kFp16) {
    multiply_in_halves(place, input, weights, sums);
  } else {
    multiply_in_tf32<Tile, kind == ProductKind::kTf32x3>(place, input, weights, sums);
  }
}

template <class Tile>
__device__ __forceinline__ void scale(typename Tile::Sums& sums, const PowerOfTwo& power) {
  power.for_factors([&](float factor) {
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      TM_UNROLL
      for (int n = 0; n < Tile::kColumnTiles; ++n) {
        TM_UNROLL
        for (int i = 0; i < 4; ++i) sums[m][n][i] *= factor;
      }
    }
  });
}

// The scales of the fp16 operands of the block's trajectory.
__device__ __forceinline__ TermScales term_scales(const FusedConvolution& params) {
  const auto exponent = [](const FusedConvolution::Term& term) {
    return scale_exponent(term.x_magnitudes, blockIdx.z) +
           scale_exponent(term.weight_magnitudes, blockIdx.z);
  };
  return TermScales(params.terms, exponent(params.term[0]),
                    params.terms == 2 ? exponent(params.term[1]) : 0);
}

// Sets `sums` to the thread's part of the block's y. Other code may use `memory` afterwards.
template <class Tile, ProductKind kind>
__device__ __forceinline__ void convolve(const FusedConvolution& params, const Place<Tile>& place,
                                         float* memory, typename Tile::Sums& sums) {
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      TM_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
  const auto add_products = [&](Pipeline<Tile, kind>& pipeline, int step) {
    pipeline.begin(step);
    TM_NO_UNROLL
    for (int kx = 0; kx < 3; ++kx) {
      multiply<Tile, kind>(place, pipeline.input(step, kx), pipeline.weights(step, kx), sums);
    }
    pipeline.end();
  };
  if constexpr (kind == ProductKind::kFp16) {
    const TermScales scales = term_scales(params);
    Pipeline<Tile, kind> pipeline(params, place, scales.swapped(), memory);
    TM_NO_UNROLL
    for (int term = 0, step = 0; term < params.terms; ++term) {
      const int next = step + pipeline.steps_of_term();
      TM_NO_UNROLL
      for (; step < next; ++step) add_products(pipeline, step);
      // Rescale to the scale of the next term, or to 1 after the last.
      scale<Tile>(sums, scales.after(term));
    }
  } else {
    Pipeline<Tile, kind> pipeline(params, place, false, memory);
    TM_NO_UNROLL
    for (int step = 0; step < pipeline.steps(); ++step) add_products(pipeline, step);
  }
}

}  // namespace trajmatch::cuda::fused
