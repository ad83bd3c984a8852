// The tangent of the first layer's backward pass along a direction of the parameters: computes y
// and y' again from the images, then the tangents of the gradients of weights, norm parameters and
// images (formulas: core/first_layer.h and core/norm_act_pool.h).
//
// Works like cuda/first_layer_backward.cu, with planes of dy and dy'. Deterministic. No argument
// may alias another.

#include "cuda/first_layer_backward.cuh"

namespace trajmatch::cuda {

namespace {

using namespace first_layer;

template <int channels>
__global__ void __launch_bounds__(kThreads, 2)
    first_layer_backward_tangent_kernel(FirstLayerBackwardTangent p) {
  constexpr int kTaps = 9 * channels;
  constexpr int kOwn = kGroupChannels<true>;
  TM_DYNAMIC_SHARED(float, dynamic);
  TM_SHARED(float, shared, PlaneSums<4 * kOwn>::kSize);
  const BackwardMemory<channels> memory(dynamic);
  const FirstLayerShape& shape = p.in.shape;
  const FirstLayerTangents& tangents = p.tangents;
  const Part<true> part(shape);
  const int64_t offset = part.trajectory * shape.parameter_stride;
  load_image<channels>(shape, p.in.images + part.image * shape.image_size(), memory.image);
  load_weights<kTaps>(part, p.in.weight + offset, tangents.weight_tangent + offset, memory.weights);
  clear_borders(memory.planes);
  __syncthreads();
  float y[kGroupPlanes][8];  // y of the group's channels, then their y'
  convolve<channels>(part, memory.image, memory.weights, y);

  const float* const grad_out = p.grad_out + part.pooled(shape);
  const float* const grad_out_tangent = p.grad_out_tangent + part.pooled(shape);
  // Sums of dz, dz xh, dz' and dz' xh + dz xh'.
  const PlaneSums<4 * kOwn> sums(shared);
  TM_UNROLL
  for (int n = 0; n < kOwn; ++n) {
    const int64_t statistic = part.statistic(shape) + n, c = offset + part.channel + n;
    const float mean = tangents.mean[statistic], rstd = tangents.rstd[statistic];
    const float mean_tangent = p.mean_tangent[statistic], projection = p.projection[statistic];
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    const float grad[2] = {0.25f * grad_out[n], 0.25f * grad_out[shape.channels + n]};
    const float grad_tangent[2] = {0.25f * grad_out_tangent[n],
                                   0.25f * grad_out_tangent[shape.channels + n]};
    float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float xh = y[n][i] = normalised(y[n][i], mean, rstd);
      const float xh_tangent = y[kOwn + n][i] =
          normalised_tangent(y[kOwn + n][i], mean_tangent, rstd, projection, xh);
      const bool idle = weight * xh + bias <= 0.0f;
      const float dz = idle ? 0.0f : grad[i % 4 / 2];
      const float dz_tangent = idle ? 0.0f : grad_tangent[i % 4 / 2];
      own[0] += dz;
      own[1] += dz * xh;
      own[2] += dz_tangent;
      own[3] += product_tangent(dz, dz_tangent, xh, xh_tangent);
    }
    TM_UNROLL
    for (int k = 0; k < 4; ++k) sums.add(k * kOwn + n, own[k]);
  }
  sums.finish();
  TM_UNROLL
  for (int n = 0; n < kOwn; ++n) {
    const int64_t statistic = part.statistic(shape) + n, c = offset + part.channel + n;
    const float rstd = tangents.rstd[statistic], projection = p.projection[statistic];
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    const float weight_tangent = tangents.norm_weight_tangent[c];
    const float grad[2] = {0.25f * grad_out[n], 0.25f * grad_out[shape.channels + n]};
    const float grad_tangent[2] = {0.25f * grad_out_tangent[n],
                                   0.25f * grad_out_tangent[shape.channels + n]};
    const float one = weight * sums[n] * kInversePixels;         // <dxh>
    const float two = weight * sums[kOwn + n] * kInversePixels;  // <dxh xh>
    const float one_tangent =
        product_tangent(weight, weight_tangent, sums[n], sums[2 * kOwn + n]) * kInversePixels;
    const float two_tangent =
        product_tangent(weight, weight_tangent, sums[kOwn + n], sums[3 * kOwn + n]) *
        kInversePixels;
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float xh = y[n][i], xh_tangent = y[kOwn + n][i];
      const bool idle = weight * xh + bias <= 0.0f;
      const float dz = idle ? 0.0f : grad[i % 4 / 2];
      const float dz_tangent = idle ? 0.0f : grad_tangent[i % 4 / 2];
      const float dy = rstd * centred(weight * dz, one, two, xh);
      y[n][i] = dy;
      const float dxh_tangent = product_tangent(weight, weight_tangent, dz, dz_tangent);
      y[kOwn + n][i] =
          rstd * centred_tangent(dxh_tangent, one_tangent, two, two_tangent, xh, xh_tangent) -
          projection * dy;
    }
    float* const plane = memory.planes + (part.group * kGroupPlanes + n) * kBordered;
    store_plane(plane, part.row, part.column, y[n]);
    store_plane(plane + kOwn * kBordered, part.row, part.column, y[kOwn + n]);
    if (threadIdx.x % kGroupThreads == 0) {
      float* const affine = p.out.partial_affine + 2 * part.image * shape.channels + part.channel;
      affine[n] = sums[3 * kOwn + n];
      affine[shape.channels + n] = sums[2 * kOwn + n];
    }
  }
  __syncthreads();
  if (p.out.grad_images != nullptr) {
    const int64_t images = shape.trajectories * shape.batch;
    image_gradient<channels, true>(
        shape, memory.planes, memory.weights,
        p.out.partial_images + (part.tile * images + part.image) * shape.image_size());
  }
  weight_gradient<channels>(part, memory.planes, memory.image,
                            p.out.partial_weight + part.image * shape.channels * kTaps);
}

}  // namespace

void launch_first_layer_backward_tangent(const FirstLayerBackwardTangent& params, Stream stream) {
  with_channels(params.in.shape, true, [&](auto channels, dim3 grid) {
    constexpr size_t kBytes = BackwardMemory<channels()>::kBytes;
    allow_dynamic_shared(first_layer_backward_tangent_kernel<channels()>, kBytes);
    TM_LAUNCH(first_layer_backward_tangent_kernel<channels()>, grid, kThreads, kBytes, stream,
              params);
    launch_first_layer_sums(params.in.shape, true, params.out, stream);
  });
}

}  // namespace trajmatch::cuda
