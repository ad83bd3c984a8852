// The first layer's forward pass and its tangent. Forward: out, mean and 1 / standard deviation
// from the images. Tangent: out', m' and q along a direction of the parameters (formulas:
// core/first_layer.h and core/norm_act_pool.h).
//
// Block tile and thread mapping: cuda/first_layer_tile.cuh. The forward pass computes the mean
// first, then the squared deviations from it. All sums are float32: over 8 pixels in a thread, then
// over the 128 threads of a group. Deterministic. No argument may alias another. Operations and
// bytes: core/first_layer.h.

#include "cuda/first_layer_tile.cuh"

namespace trajmatch::cuda {

namespace {

using namespace first_layer;

template <int channels>
__global__ void __launch_bounds__(kThreads, 2) first_layer_forward_kernel(FirstLayerForward p) {
  constexpr int kTaps = 9 * channels;
  TM_SHARED(float4, image, channels * kBordered / 4);
  TM_SHARED(float4, weights, kTaps * kPlanes / 4);
  TM_SHARED(float, shared, PlaneSums<kGroupPlanes>::kSize);
  const FirstLayerShape& shape = p.in.shape;
  const Part<false> part(shape);
  float* const pixels = reinterpret_cast<float*>(image);
  float* const taps = reinterpret_cast<float*>(weights);
  const int64_t offset = part.trajectory * shape.parameter_stride;
  load_image<channels>(shape, p.in.images + part.image * shape.image_size(), pixels);
  load_weights<kTaps>(part, p.in.weight + offset, nullptr, taps);
  __syncthreads();
  float y[kGroupPlanes][8];
  convolve<channels>(part, pixels, taps, y);

  const PlaneSums<kGroupPlanes> sums(shared);
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    float sum = 0.0f;
    TM_UNROLL
    for (int i = 0; i < 8; ++i) sum += y[n][i];
    sums.add(n, sum);
  }
  sums.finish();
  const bool leads_group = threadIdx.x % kGroupThreads == 0;
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    const float mean = sums[n] * kInversePixels;
    if (leads_group) p.mean[part.statistic(shape) + n] = mean;
    float sum = 0.0f;
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      y[n][i] -= mean;
      sum += y[n][i] * y[n][i];
    }
    sums.add(n, sum);
  }
  sums.finish();
  float pooled[2][kGroupPlanes];
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    const float rstd = rsqrtf(sums[n] * kInversePixels + static_cast<float>(shape.eps));
    if (leads_group) p.rstd[part.statistic(shape) + n] = rstd;
    const float scale = rstd * p.in.norm_weight[offset + part.channel + n];
    const float bias = p.in.norm_bias[offset + part.channel + n];
    TM_UNROLL
    for (int w = 0; w < 2; ++w) {
      float sum = 0.0f;
      TM_UNROLL
      for (int k = 0; k < 4; ++k) {
        const float z = y[n][k / 2 * 4 + w * 2 + k % 2] * scale + bias;
        // ReLU, written so that NaN stays NaN.
        sum += z <= 0.0f ? 0.0f : z;
      }
      pooled[w][n] = 0.25f * sum;
    }
  }
  TM_UNROLL
  for (int w = 0; w < 2; ++w) {
    float* const out = p.out + part.pooled(shape) + w * shape.channels;
    store_four(out, pooled[w]);
    store_four(out + 4, pooled[w] + 4);
  }
}

template <int channels>
__global__ void __launch_bounds__(kThreads, 2) first_layer_tangent_kernel(FirstLayerTangent p) {
  constexpr int kTaps = 9 * channels;
  constexpr int kOwn = kGroupChannels<true>;
  TM_SHARED(float4, image, channels * kBordered / 4);
  TM_SHARED(float4, weights, kTaps * kPlanes / 4);
  TM_SHARED(float, shared, PlaneSums<kGroupPlanes>::kSize);
  const FirstLayerShape& shape = p.in.shape;
  const FirstLayerTangents& tangents = p.tangents;
  const Part<true> part(shape);
  float* const pixels = reinterpret_cast<float*>(image);
  float* const taps = reinterpret_cast<float*>(weights);
  const int64_t offset = part.trajectory * shape.parameter_stride;
  load_image<channels>(shape, p.in.images + part.image * shape.image_size(), pixels);
  load_weights<kTaps>(part, p.in.weight + offset, tangents.weight_tangent + offset, taps);
  __syncthreads();
  float y[kGroupPlanes][8];  // y of the group's channels, then their y'
  convolve<channels>(part, pixels, taps, y);

  // sums of y', then of xh y', which equal those of xh (y' - m')
  const PlaneSums<2 * kOwn> sums(shared);
  TM_UNROLL
  for (int n = 0; n < kOwn; ++n) {
    const float mean = tangents.mean[part.statistic(shape) + n];
    const float rstd = tangents.rstd[part.statistic(shape) + n];
    float sum = 0.0f, product = 0.0f;
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      y[n][i] = normalised(y[n][i], mean, rstd);
      sum += y[kOwn + n][i];
      product += y[n][i] * y[kOwn + n][i];
    }
    sums.add(n, sum);
    sums.add(kOwn + n, product);
  }
  sums.finish();
  float pooled[2][kOwn];
  TM_UNROLL
  for (int n = 0; n < kOwn; ++n) {
    const float rstd = tangents.rstd[part.statistic(shape) + n];
    const float mean_tangent = sums[n] * kInversePixels;
    const float projection = rstd * sums[kOwn + n] * kInversePixels;
    const int64_t c = offset + part.channel + n;
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    const float weight_tangent = tangents.norm_weight_tangent[c];
    const float bias_tangent = tangents.norm_bias_tangent[c];
    TM_UNROLL
    for (int w = 0; w < 2; ++w) {
      float sum = 0.0f;
      TM_UNROLL
      for (int k = 0; k < 4; ++k) {
        const int i = k / 2 * 4 + w * 2 + k % 2;
        const float xh = y[n][i];
        const float xh_tangent =
            normalised_tangent(y[kOwn + n][i], mean_tangent, rstd, projection, xh);
        const float z_tangent =
            affine_tangent(weight, weight_tangent, bias_tangent, xh, xh_tangent);
        sum += weight * xh + bias <= 0.0f ? 0.0f : z_tangent;
      }
      pooled[w][n] = 0.25f * sum;
    }
    if (threadIdx.x % kGroupThreads == 0) {
      p.mean_tangent[part.statistic(shape) + n] = mean_tangent;
      p.projection[part.statistic(shape) + n] = projection;
    }
  }
  TM_UNROLL
  for (int w = 0; w < 2; ++w) {
    store_four(p.out_tangent + part.pooled(shape) + w * shape.channels, pooled[w]);
  }
}

}  // namespace

void launch_first_layer_forward(const FirstLayerForward& params, Stream stream) {
  with_channels(params.in.shape, false, [&](auto channels, dim3 grid) {
    TM_LAUNCH(first_layer_forward_kernel<channels()>, grid, kThreads, 0, stream, params);
  });
}

void launch_first_layer_tangent(const FirstLayerTangent& params, Stream stream) {
  with_channels(params.in.shape, true, [&](auto channels, dim3 grid) {
    TM_LAUNCH(first_layer_tangent_kernel<channels()>, grid, kThreads, 0, stream, params);
  });
}

}  // namespace trajmatch::cuda
