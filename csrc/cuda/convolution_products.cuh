// The multiply-accumulate loops of a fused convolution block on tensor cores, in TF32 and in half
// precision, and the loop over all pipeline steps.
#pragma once

#include <cstdint>

#include "cuda/convolution_pipeline.cuh"
#include "cuda/half_operand.cuh"

namespace trajmatch::cuda::fused {

// Rounds a fragment to TF32 and returns in `rest` what that leaves, rounded as well.
template <int count>
__device__ __forceinline__ void split(float (&words)[count], float (&rest)[count]) {
  TM_UNROLL
  for (int i = 0; i < count; ++i) {
    const float whole = words[i];
    words[i] = round_to_tf32(whole);
    rest[i] = round_to_tf32(whole - words[i]);
  }
}

// Adds the products of two pieces of input channels at one tap. `pixels` and `weights` are the
// places that this lane reads for ldmatrix (lane_pixel(), lane_weight()), at the tap.
template <class Tile, ProductKind kind>
__device__ __forceinline__ void multiply(const float4* pixels, const float4* weights,
                                         typename Tile::Sums& sums) {
  constexpr bool kThree = kind == ProductKind::kTf32x3;
  float a[Tile::kRowTiles][4], a_rest[Tile::kRowTiles][4];
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    load_matrices(a[m], pixels + Place<Tile>::bordered_step(m));
    if constexpr (kThree) split(a[m], a_rest[m]);
  }
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; n += 2) {
    float two[4];
    load_matrices(two, weights + n * 8);
    TM_UNROLL
    for (int i = 0; i < 2; ++i) {
      float b[2] = {two[2 * i], two[2 * i + 1]}, b_rest[2];
      if constexpr (kThree) split(b, b_rest);
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        if constexpr (kind == ProductKind::kFp16) {
          multiply_halves(sums[m][n + i], a[m], b);
        } else if constexpr (kThree) {
          // Tensor cores truncate sums instead of rounding them, so add long sums outside.
          float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          multiply_tf32(part, a_rest[m], b);
          multiply_tf32(part, a[m], b_rest);
          multiply_tf32(part, a[m], b);
          TM_UNROLL
          for (int j = 0; j < 4; ++j) sums[m][n + i][j] += part[j];
        } else {
          multiply_tf32(sums[m][n + i], a[m], b);
        }
      }
    }
  }
}

// Offset at which the lane reads inputs, from the block's first pixel. Of ldmatrix's four matrices,
// the second is one pixel row lower; the last two are the next piece.
template <class Tile, ProductKind kind>
__device__ __forceinline__ int lane_pixel(const Place<Tile>& place) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  return lane / 16 * Chunk<Tile, kind>::kPlane + place.first_bordered() +
         lane / 8 % 2 * Tile::kPitch + lane % 8;
}

// Offset at which the lane reads weights. The second matrix is the next piece; the last two are the
// next eight outputs.
template <class Tile>
__device__ __forceinline__ int lane_weight(const Place<Tile>& place) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  return lane / 8 % 2 * Tile::kChannels + (place.warp_column * Tile::kColumnTiles + lane / 16) * 8 +
         lane % 8;
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
  using C = Chunk<Tile, kind>;
  TM_UNROLL
  for (int m = 0; m < Tile::kRowTiles; ++m) {
    TM_UNROLL
    for (int n = 0; n < Tile::kColumnTiles; ++n) {
      TM_UNROLL
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
  const int pixel = lane_pixel<Tile, kind>(place), weight = lane_weight(place);
  const auto add_steps = [&](Pipeline<Tile, kind>& pipeline, int steps) {
    TM_NO_UNROLL
    for (int step = 0; step < steps; ++step) {
      pipeline.begin();
      const float4* const pixels = pipeline.input() + pixel;
      const float4* const weights = pipeline.weights() + weight;
      const auto add = [&](int kx, int piece) {
        multiply<Tile, kind>(pixels + kx + piece * C::kPlane,
                             weights + kx * C::kTapSize + piece * Tile::kChannels, sums);
      };
      if constexpr (kind == ProductKind::kTf32x3) {  // unrolled, it would spill registers
        TM_NO_UNROLL
        for (int i = 0; i < 3 * C::kPieces / 2; ++i) add(i / 2, i % 2 * 2);
      } else {
        TM_UNROLL
        for (int i = 0; i < 3 * C::kPieces / 2; ++i) add(i / 2, i % 2 * 2);
      }
    }
  };
  float4* const pieces = reinterpret_cast<float4*>(memory);
  if constexpr (kind == ProductKind::kFp16) {
    const TermScales scales = term_scales(params);
    Pipeline<Tile, kind> pipeline(params, place, scales.swapped(), pieces);
    TM_NO_UNROLL
    for (int term = 0; term < params.terms; ++term) {
      add_steps(pipeline, pipeline.steps_of_term());
      // Rescale to the scale of the next term, or to 1 after the last.
      scale<Tile>(sums, scales.after(term));
    }
  } else {
    Pipeline<Tile, kind> pipeline(params, place, false, pieces);
    add_steps(pipeline, params.terms * pipeline.steps_of_term());
  }
  __syncthreads();
}

}  // namespace trajmatch::cuda::fused
