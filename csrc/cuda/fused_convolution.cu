// 3x3 convolutions of 16 x 16 and 8 x 8 planes, as a sum of one or two terms (formulas:
// core/fused_convolution.h). They compute the gradient in x, from turned weights, and its tangent.
//
// Block tile, thread mapping and accumulators: cuda/convolution_tile.cuh. Deterministic. No
// argument may alias another.

#include "core/fused_convolution.h"

#include "cuda/convolution_products.cuh"

namespace trajmatch::cuda {
namespace {

using namespace fused;

template <class Tile, ProductKind kind>
__global__ void __launch_bounds__(kThreads, 1) fused_convolution_kernel(FusedConvolution p) {
  TM_DYNAMIC_SHARED(float, memory);
  const Place<Tile> place(p.shape);
  typename Tile::Sums sums;
  convolve<Tile, kind>(p, place, memory, sums);
  store(p.shape, place, sums, p.y);
}

}  // namespace

void launch_fused_convolution(const FusedConvolution& params, Stream stream) {
  with_tile<false>(params, [&](auto tile, auto kind) {
    using Tile = decltype(tile);
    constexpr size_t kBytes = Chunk<Tile, kind()>::kBytes;
    allow_dynamic_shared(fused_convolution_kernel<Tile, kind()>, kBytes);
    TM_LAUNCH((fused_convolution_kernel<Tile, kind()>), grid_of(params), kThreads, kBytes, stream,
              params);
  });
}

}  // namespace trajmatch::cuda
