// The forward pass of a deeper block of a student in one kernel: convolution, instance norm, ReLU
// and 2x2 average pooling (formulas: core/fused_convolution.h and core/norm_act_pool.h).
//
// Block tile, thread mapping and accumulators: cuda/convolution_tile.cuh. A block holds whole
// planes in registers, so norm, ReLU and pooling work on the accumulators. The mean is computed
// first, then the squared deviations from it. y is also written to memory, for the backward pass.
// Deterministic. No argument may alias another.

#include "core/fused_convolution.h"
#include "cuda/convolution_products.cuh"
#include "cuda/image_sums.cuh"

namespace trajmatch::cuda {
namespace {

using namespace fused;

template <class Tile, ProductKind kind>
__global__ void __launch_bounds__(kThreads, 1) fused_block_forward_kernel(FusedBlockForward p) {
  TM_DYNAMIC_SHARED(float, memory);
  const FusedConvolutionShape& shape = p.convolution.shape;
  const Place<Tile> place(shape);
  typename Tile::Sums y;
  convolve<Tile, kind>(p.convolution, place, memory, y);
  store(shape, place, y, p.convolution.y);

  // convolve() is done with the shared memory, so the sums can use it.
  const ImageSums<Tile> values(place, memory);
  const ImageSums<Tile> squares(place, memory + ImageSums<Tile>::kSize);
  const bool leads = leads_image(shape, place);
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    TM_UNROLL
    for (int e = 0; e < 2; ++e) {
      float sum = 0.0f;
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) sum += y[m][n][e] + y[m][n][2 + e];
      values.add(n, e, sum);
    }
  }
  values.finish();
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    TM_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float mean = values.mean(n, e);
      if (leads) p.mean[statistic(shape, place, n) + e] = mean;
      float sum = 0.0f;
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        y[m][n][e] -= mean;
        y[m][n][2 + e] -= mean;
        sum += y[m][n][e] * y[m][n][e] + y[m][n][2 + e] * y[m][n][2 + e];
      }
      squares.add(n, e, sum);
    }
  }
  squares.finish();
  const int64_t offset = blockIdx.z * p.norm.parameter_stride;
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    float scale[2], bias[2];
    TM_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float rstd = rsqrtf(squares.mean(n, e) + p.norm.eps);
      if (leads) p.rstd[statistic(shape, place, n) + e] = rstd;
      scale[e] = rstd * p.norm.weight[offset + place.channel(n) + e];
      bias[e] = p.norm.bias[offset + place.channel(n) + e];
    }
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      float pooled[2] = {0.0f, 0.0f};
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float z = y[m][n][i] * scale[i % 2] + bias[i % 2];
        // ReLU, written so that NaN stays NaN.
        pooled[i % 2] += z <= 0.0f ? 0.0f : z;
      }
      store_pooled(shape, place, m, n, pooled[0], pooled[1], p.rounds, p.out);
    }
  }
}

}  // namespace

void launch_fused_block_forward(const FusedBlockForward& params, Stream stream) {
  with_tile<true>(params.convolution, [&](auto tile, auto kind) {
    using Tile = decltype(tile);
    constexpr size_t kBytes = Chunk<Tile, kind()>::kBytes;
    allow_dynamic_shared(fused_block_forward_kernel<Tile, kind()>, kBytes);
    TM_LAUNCH((fused_block_forward_kernel<Tile, kind()>), grid_of(params.convolution), kThreads,
              kBytes, stream, params);
  });
}

}  // namespace trajmatch::cuda
