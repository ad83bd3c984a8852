// The first layer's forward pass and its tangent. Forward: out, mean and 1 / standard deviation
// from the images. Tangent: out', m' and q along a direction of the parameters (formulas:
// core/first_layer.h and core/norm_act_pool.h).
//
// Block tile and thread mapping: cuda/first_layer_tile.cuh. The forward pass computes the mean
// first, then the squared deviations from it. Of a plane of several squares, the first launch
// computes the deviations from the mean of each square, which the second one corrects. All sums are
// float32: over 32 pixels in a lane, then over 4 lanes and 8 warps, then over squares.
// Deterministic. No argument may alias another. Operations and bytes: core/first_layer.h.

#include "cuda/first_layer_tile.cuh"

namespace trajmatch::cuda {

namespace {

using namespace first_layer;

template <int channels, Launch launch>
__global__ void __launch_bounds__(kThreads, 2) first_layer_forward_kernel(FirstLayerForward p) {
  using Part = PartOf<false, launch>;
  using Sums = PlaneSums<4, Part>;
  TM_SHARED(float, image, kImage<channels>);
  TM_SHARED(float4, of_taps, Taps<channels>::kSize / 4);
  TM_SHARED(float4, shared, Sums::kSize / 4);
  const FirstLayerShape& shape = p.in.shape;
  const Part part(shape);
  // sums of y, then of its squared deviations from the mean, for each r
  const Sums sums(reinterpret_cast<float*>(shared), part, p.in.sums);
  const int64_t offset = blockIdx.z * shape.parameter_stride;
  load_image<channels>(shape, part, p.in.images, image);
  const Taps<channels> taps(reinterpret_cast<float*>(of_taps));
  taps.load(part, p.in.weight + offset, nullptr);
  __syncthreads();
  float y[kTiles][4];
  convolve<channels>(part, taps, image, y);

  TM_UNROLL
  for (int r = 0; r < 2; ++r) {
    float sum = 0.0f;
    TM_UNROLL
    for (int j = 0; j < kTiles; ++j) sum += y[j][2 * r] + y[j][2 * r + 1];
    sums.add(r, sum);
  }
  __syncthreads();
  sums.recentre(2);
  TM_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float mean = sums.get(r) * sums.inverse_pixels();
    if (launch != Launch::kFirst && part.leads()) p.mean[part.statistic() + 8 * r] = mean;
    float sum = 0.0f;
    TM_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      TM_UNROLL
      for (int i = 0; i < 2; ++i) {
        float& own = y[j][2 * r + i];
        own -= mean;
        sum += own * own;
      }
    }
    sums.add(2 + r, sum);
  }
  __syncthreads();
  if (sums.end_first_launch()) return;
  TM_UNROLL
  for (int r = 0; r < 2; ++r) {
    const float variance = sums.get(2 + r) * sums.inverse_pixels();
    const float rstd = rsqrtf(variance + static_cast<float>(shape.eps));
    if (part.leads()) p.rstd[part.statistic() + 8 * r] = rstd;
    const int64_t c = offset + part.first_channel + part.g + 8 * r;
    const float scale = rstd * p.in.norm_weight[c], bias = p.in.norm_bias[c];
    float* const out = p.out + part.pooled(shape) + 8 * r;
    TM_UNROLL
    for (int k = 0; k < kWindows; ++k) {
      float sum = 0.0f;
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float z = y[tile_of(k, i)][2 * r + i % 2] * scale + bias;
        // ReLU, written so that NaN stays NaN.
        sum += z <= 0.0f ? 0.0f : z;
      }
      out[part.window(k)] = rounded(p.rounds, 0.25f * sum);
    }
  }
}

template <int channels, Launch launch>
__global__ void __launch_bounds__(kThreads, 2) first_layer_tangent_kernel(FirstLayerTangent p) {
  using Part = PartOf<true, launch>;
  using Sums = PlaneSums<2, Part>;
  TM_SHARED(float, image, kImage<channels>);
  TM_SHARED(float4, of_taps, Taps<channels>::kSize / 4);
  TM_SHARED(float4, shared, Sums::kSize / 4);
  const FirstLayerShape& shape = p.in.shape;
  const FirstLayerTangents& tangents = p.tangents;
  const Part part(shape);
  // sums of y', then of xh y', which equal those of xh (y' - m')
  const Sums sums(reinterpret_cast<float*>(shared), part, p.in.sums);
  const int64_t offset = blockIdx.z * shape.parameter_stride;
  load_image<channels>(shape, part, p.in.images, image);
  const Taps<channels> taps(reinterpret_cast<float*>(of_taps));
  taps.load(part, p.in.weight + offset, tangents.weight_tangent + offset);
  __syncthreads();
  float y[kTiles][4];  // y, y, y', y'
  convolve<channels>(part, taps, image, y);

  const int statistic = part.statistic();
  const int64_t c = offset + part.first_channel + part.g;
  const float mean = tangents.mean[statistic], rstd = tangents.rstd[statistic];
  float sum = 0.0f, product = 0.0f;
  TM_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    TM_UNROLL
    for (int i = 0; i < 2; ++i) {
      y[j][i] = normalised(y[j][i], mean, rstd);
      sum += y[j][2 + i];
      product += y[j][i] * y[j][2 + i];
    }
  }
  sums.add(0, sum);
  sums.add(1, product);
  __syncthreads();
  if (sums.end_first_launch()) return;
  const float mean_tangent = sums.get(0) * sums.inverse_pixels();
  const float projection = rstd * sums.get(1) * sums.inverse_pixels();
  const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
  const float weight_tangent = tangents.norm_weight_tangent[c];
  const float bias_tangent = tangents.norm_bias_tangent[c];
  float* const out = p.out_tangent + part.pooled(shape);
  TM_UNROLL
  for (int k = 0; k < kWindows; ++k) {
    float pooled = 0.0f;
    TM_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float* const own = y[tile_of(k, i)] + i % 2;
      const float xh = own[0];
      const float xh_tangent = normalised_tangent(own[2], mean_tangent, rstd, projection, xh);
      const float z_tangent = affine_tangent(weight, weight_tangent, bias_tangent, xh, xh_tangent);
      pooled += weight * xh + bias <= 0.0f ? 0.0f : z_tangent;
    }
    out[part.window(k)] = rounded(p.rounds, 0.25f * pooled);
  }
  if (part.leads()) {
    p.mean_tangent[statistic] = mean_tangent;
    p.projection[statistic] = projection;
  }
}

}  // namespace

void launch_first_layer_forward(const FirstLayerForward& params, Stream stream) {
  with_launches(params.in.shape, false, [&](auto channels, auto launch, dim3 grid) {
    TM_LAUNCH((first_layer_forward_kernel<channels(), launch()>), grid, kThreads, 0, stream,
              params);
  });
}

void launch_first_layer_tangent(const FirstLayerTangent& params, Stream stream) {
  with_launches(params.in.shape, true, [&](auto channels, auto launch, dim3 grid) {
    TM_LAUNCH((first_layer_tangent_kernel<channels(), launch()>), grid, kThreads, 0, stream,
              params);
  });
}

}  // namespace trajmatch::cuda
