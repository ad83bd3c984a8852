// The tangent of a deeper block of a student in one kernel: y' as a sum of one or two terms, then
// the tangents of norm, ReLU and pooling (formulas: core/fused_convolution.h and
// core/norm_act_pool.h).
//
// Block tile, thread mapping and accumulators: cuda/convolution_tile.cuh. y' is written to memory,
// and the rest works on its copy in registers. y is read from memory instead of computed again,
// because the forward pass stored it for the backward pass anyway. Deterministic. No argument may
// alias another.

#include "core/fused_convolution.h"
#include "cuda/convolution_products.cuh"
#include "cuda/image_sums.cuh"

namespace trajmatch::cuda {
namespace {

using namespace fused;

template <class Tile, ProductKind kind>
__global__ void __launch_bounds__(kThreads, 1) fused_block_tangent_kernel(FusedBlockTangent p) {
  TM_DYNAMIC_SHARED(float, memory);
  const FusedConvolutionShape& shape = p.convolution.shape;
  const Place<Tile> place(shape);
  typename Tile::Sums y_tangent;
  convolve<Tile, kind>(p.convolution, place, memory, y_tangent);
  store(shape, place, y_tangent, p.convolution.y);

  // y at the accumulators of row r of piece (m, n). The image must exist. y is read twice, because
  // registers are scarce.
  const auto y_at = [&](int m, int n, int r) {
    return *reinterpret_cast<const float2*>(p.y + place.offset(shape, m, n) +
                                            r * Tile::kSide * shape.channels);
  };
  // convolve() is done with the shared memory, so the sums can use it.
  const ImageSums<Tile> values(place, memory);
  const ImageSums<Tile> products(place, memory + ImageSums<Tile>::kSize);
  const bool exists = place.has(shape, 0);  // all pixels of a warp are of one image
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    // sums of y' and of xh y'; the latter is also that of xh (y' - m')
    float value[2] = {0.0f, 0.0f}, product[2] = {0.0f, 0.0f};
    if (exists) {
      const float* const mean = p.mean + statistic(shape, place, n);
      const float* const rstd = p.rstd + statistic(shape, place, n);
      TM_UNROLL
      for (int m = 0; m < Tile::kRowTiles; ++m) {
        TM_UNROLL
        for (int r = 0; r < 2; ++r) {
          const float2 two = y_at(m, n, r);
          const float y[2] = {two.x, two.y};
          TM_UNROLL
          for (int e = 0; e < 2; ++e) {
            const float tangent = y_tangent[m][n][2 * r + e];
            value[e] += tangent;
            product[e] += normalised(y[e], mean[e], rstd[e]) * tangent;
          }
        }
      }
    }
    TM_UNROLL
    for (int e = 0; e < 2; ++e) {
      values.add(n, e, value[e]);
      products.add(n, e, product[e]);
    }
  }
  values.finish();
  if (!exists) return;
  const bool leads = leads_image(shape, place);
  const int64_t offset = blockIdx.z * p.norm.parameter_stride;
  TM_UNROLL
  for (int n = 0; n < Tile::kColumnTiles; ++n) {
    float mean[2], rstd[2], mean_tangent[2], projection[2];
    float weight[2], bias[2], weight_tangent[2], bias_tangent[2];
    TM_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int64_t of_image = statistic(shape, place, n) + e;
      mean[e] = p.mean[of_image];
      rstd[e] = p.rstd[of_image];
      mean_tangent[e] = values.mean(n, e);
      projection[e] = rstd[e] * products.mean(n, e);
      const int64_t of_channel = offset + place.channel(n) + e;
      weight[e] = p.norm.weight[of_channel];
      bias[e] = p.norm.bias[of_channel];
      weight_tangent[e] = p.weight_tangent[of_channel];
      bias_tangent[e] = p.bias_tangent[of_channel];
      if (leads) {
        p.mean_tangent[of_image] = mean_tangent[e];
        p.projection[of_image] = projection[e];
      }
    }
    TM_UNROLL
    for (int m = 0; m < Tile::kRowTiles; ++m) {
      float pooled[2] = {0.0f, 0.0f};
      TM_UNROLL
      for (int r = 0; r < 2; ++r) {
        const float2 two = y_at(m, n, r);
        const float y[2] = {two.x, two.y};
        TM_UNROLL
        for (int e = 0; e < 2; ++e) {
          const float xh = normalised(y[e], mean[e], rstd[e]);
          const float xh_tangent = normalised_tangent(y_tangent[m][n][2 * r + e], mean_tangent[e],
                                                      rstd[e], projection[e], xh);
          const float z_tangent =
              affine_tangent(weight[e], weight_tangent[e], bias_tangent[e], xh, xh_tangent);
          pooled[e] += weight[e] * xh + bias[e] <= 0.0f ? 0.0f : z_tangent;
        }
      }
      store_pooled(shape, place, m, n, pooled[0], pooled[1], p.rounds, p.out_tangent);
    }
  }
}

}  // namespace

void launch_fused_block_tangent(const FusedBlockTangent& params, Stream stream) {
  with_tile<false>(params.convolution, [&](auto tile, auto kind) {
    using Tile = decltype(tile);
    constexpr size_t kBytes = Chunk<Tile, kind()>::kBytes;
    allow_dynamic_shared(fused_block_tangent_kernel<Tile, kind()>, kBytes);
    TM_LAUNCH((fused_block_tangent_kernel<Tile, kind()>), grid_of(params.convolution), kThreads,
              kBytes, stream, params);
  });
}

}  // namespace trajmatch::cuda
