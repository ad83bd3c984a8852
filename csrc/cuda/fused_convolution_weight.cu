// The weight gradient of a convolution of 16 x 16 or 8 x 8 planes, as a sum over one or two pairs
// (formulas: core/fused_convolution.h).
//
// Split-K over the images. A block computes the three taps of one row ky, for up to 64 input and
// all output channels, from the images of its split. A warp computes 32 x 32 channels. With fewer
// than 128 channels the spare warps divide the pixels into parts. Strips of whole rows pass through
// shared memory: dy as it is, x shifted by ky - 1 rows and with border columns
// (cuda/weight_gradient_strips.cuh). Each split and part writes its partial sums, which
// cuda/sum_shares.cu adds in a fixed order. Deterministic. No argument may alias another.
//
// Operations and bytes at S = 16, C = 128 and one pair: 75.5 MFLOP per image. Every block reads
// half of x and all of dy from L2, 0.2 MB per image, or 0.1 MB in half precision. The partial sums
// are 0.59 MB per split, written once and read once.

#include <algorithm>
#include <type_traits>

#include "core/fused_convolution.h"
#include "cuda/convolution_pipeline.cuh"
#include "cuda/half_operand.cuh"
#include "cuda/weight_gradient_products.cuh"

namespace trajmatch::cuda {
namespace {

using namespace weight_gradient;

__device__ __forceinline__ void scale(Sums& sums, const PowerOfTwo& power) {
  power.for_factors([&](float factor) {
    TM_UNROLL
    for (int i = 0; i < 3 * 2 * 4 * 4; ++i) sums[i / 32][i / 16 % 2][i / 4 % 4][i % 4] *= factor;
  });
}

// The scales of the fp16 operands of the block's trajectory.
__device__ __forceinline__ TermScales pair_scales(const FusedConvolutionWeight& params) {
  const auto exponent = [](const FusedConvolutionWeight::Pair& pair) {
    return scale_exponent(pair.x_magnitudes, blockIdx.z) +
           scale_exponent(pair.grad_y_magnitudes, blockIdx.z);
  };
  return TermScales(params.pairs, exponent(params.pair[0]),
                    params.pairs == 2 ? exponent(params.pair[1]) : 0);
}

// Adds strips to the sums of the warp. `x` and `dy` are the offsets where the lane reads. The warp
// takes every kParts-th product of 8 or 16 pixels, starting with number `part`.
template <int side, int channels, ProductKind kind>
__device__ __forceinline__ void add_strips(StripPipeline<side, channels, kind>& pipeline,
                                           int strips, int x, int dy, int part, Sums& sums) {
  using S = Strips<side, channels, kind>;
  const auto add = [&](int product) {
    const int pixel = product * S::kAtOnce;
    multiply<S>(pipeline.input() + x + S::bordered(pixel) * S::Input::kPixel,
                pipeline.output() + dy + pixel * S::Output::kPixel, sums);
  };
  TM_NO_UNROLL
  for (int strip = 0; strip < strips; ++strip) {
    pipeline.begin();
    if constexpr (S::kParts == 1) {
      TM_UNROLL
      for (int i = 0; i < S::kProducts; ++i) add(i);
    } else {
      // The parts take turns, also across strips. The first product of this strip is the turn of
      // part `before`.
      const int before = strip * S::kProducts % S::kParts;
      TM_NO_UNROLL
      for (int i = (part + S::kParts - before) % S::kParts; i < S::kProducts; i += S::kParts) {
        add(i);
      }
    }
  }
}

template <int side, int channels, ProductKind kind>
__global__ void __launch_bounds__(kThreads, 1)
    fused_convolution_weight_kernel(FusedConvolutionWeight p) {
  using S = Strips<side, channels, kind>;
  constexpr int kInputWarps = S::kInputs / 32, kOutputWarps = S::kOutputs / 32;
  TM_DYNAMIC_SHARED(float, memory);
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int input = warp % kInputWarps * 32;  // first channels of the warp, within the block
  const int output = warp / kInputWarps % kOutputWarps * 32;
  const int part = warp / (kInputWarps * kOutputWarps);
  const LanePlaces<S> lane;
  const int x = lane.x + input / S::kInFloat, dy = lane.dy + output / S::kInFloat;
  Sums sums;
  TM_UNROLL
  for (int i = 0; i < 3 * 2 * 4 * 4; ++i) sums[i / 32][i / 16 % 2][i / 4 % 4][i % 4] = 0.0f;
  if constexpr (kind == ProductKind::kFp16) {
    const TermScales scales = pair_scales(p);
    StripPipeline<side, channels, kind> pipeline(p, scales.swapped(), memory);
    TM_NO_UNROLL
    for (int pair = 0; pair < p.pairs; ++pair) {
      add_strips(pipeline, pipeline.steps_of_pair(), x, dy, part, sums);
      // Rescale to the scale of the next pair, or to 1 after the last.
      scale(sums, scales.after(pair));
    }
  } else {
    StripPipeline<side, channels, kind> pipeline(p, false, memory);
    add_strips(pipeline, p.pairs * pipeline.steps_of_pair(), x, dy, part, sums);
  }
  const int ky = static_cast<int>(blockIdx.y) % 3;
  const int first_input = static_cast<int>(blockIdx.y) / 3 * S::kInputs + input;
  const int64_t share = (blockIdx.z * p.splits + blockIdx.x) * S::kParts + part;
  store<channels, S::kHalf>(sums, p.partial + share * p.shape.weight_size() +
                                      (ky * 3 * channels + first_input) * channels + output);
}

// Calls body(side, channels, kind) with all three run-time values as compile-time constants.
template <class Body>
void with_strips(const FusedConvolutionShape& shape, ProductKind kind, const Body& body) {
  const auto with_kind = [&](auto side, auto channels) {
    if (kind == ProductKind::kFp16) {
      return body(side, channels, std::integral_constant<ProductKind, ProductKind::kFp16>());
    }
    return body(side, channels, std::integral_constant<ProductKind, ProductKind::kTf32>());
  };
  const auto with_channels = [&](auto side) {
    switch (shape.channels) {
      case 128:
        return with_kind(side, std::integral_constant<int, 128>());
      case 64:
        return with_kind(side, std::integral_constant<int, 64>());
      default:
        return with_kind(side, std::integral_constant<int, 32>());
    }
  };
  if (shape.size == 16) {
    with_channels(std::integral_constant<int, 16>());
  } else {
    with_channels(std::integral_constant<int, 8>());
  }
}

}  // namespace

bool fused_convolution_fits_device(const FusedConvolutionShape& shape, ProductKind forward_kind,
                                   ProductKind kind) {
  size_t most = 0;
  with_strips(shape, kind, [&](auto side, auto channels, auto products) {
    most = Strips<side(), channels(), products()>::kBytes;
  });
  for (const ProductKind each : {forward_kind, kind}) {
    FusedConvolution widest{};  // the widest tile needs the most shared memory
    widest.shape = shape;
    widest.kind = each;
    widest.tile_channels = shape.widest_tile(each);
    fused::with_tile<true>(widest, [&](auto tile, auto products) {
      most = std::max(most, fused::Chunk<decltype(tile), products()>::kBytes);
    });
  }
  return has_tensor_cores() && has_dynamic_shared(most);
}

void launch_fused_convolution_weight(const FusedConvolutionWeight& params, Stream stream) {
  with_strips(params.shape, params.kind, [&](auto side, auto channels, auto kind) {
    using S = Strips<side(), channels(), kind()>;
    const FusedConvolutionShape& shape = params.shape;
    const dim3 grid(grid_size(params.splits), 3 * channels() / S::kInputs,
                    grid_size(shape.trajectories));
    allow_dynamic_shared(fused_convolution_weight_kernel<side(), channels(), kind()>, S::kBytes);
    TM_LAUNCH((fused_convolution_weight_kernel<side(), channels(), kind()>), grid, kThreads,
              S::kBytes, stream, params);
  });
}

}  // namespace trajmatch::cuda
