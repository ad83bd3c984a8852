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

template <int channels, Launch launch>
__global__ void __launch_bounds__(kThreads, 2)
    first_layer_backward_tangent_kernel(FirstLayerBackwardTangent p) {
  using Part = PartOf<true, launch>;
  using Sums = PlaneSums<4, Part>;
  TM_DYNAMIC_SHARED(float, dynamic);
  TM_SHARED(float4, shared, Sums::kSize / 4);
  const BackwardMemory<channels, launch> memory(dynamic);
  const FirstLayerShape& shape = p.in.shape;
  const FirstLayerTangents& tangents = p.tangents;
  const Part part(shape);
  // sums of dz, dz xh, dz' and dz' xh + dz xh'
  const Sums sums(reinterpret_cast<float*>(shared), part, p.in.sums);
  const int64_t offset = blockIdx.z * shape.parameter_stride;
  const int64_t pooled = part.pooled(shape);
  load_grads(part, p.grad_out + pooled, memory.grads);
  load_grads(part, p.grad_out_tangent + pooled, memory.grads + kWindows * kThreads);
  load_image<channels>(shape, part, p.in.images, memory.image);
  memory.taps.load(part, p.in.weight + offset, tangents.weight_tangent + offset);
  if (launch != Launch::kFirst && p.out.images != nullptr) {
    load_image_weights<channels>(part, p.in.weight + offset, tangents.weight_tangent + offset,
                                 memory.image_weights);
  }
  __syncthreads();
  float y[kTiles][4];  // y, y, y', y'
  convolve<channels>(part, memory.taps, memory.image, y);

  const int statistic = part.statistic();
  const int64_t c = offset + part.first_channel + part.g;
  float own_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  {
    const float rstd = tangents.rstd[statistic], projection = p.projection[statistic];
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    const float mean = tangents.mean[statistic], mean_tangent = p.mean_tangent[statistic];
    TM_UNROLL
    for (int k = 0; k < kWindows; ++k) {
      const float grad = memory.grads[k * kThreads];
      const float grad_tangent = memory.grads[(8 + k) * kThreads];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        float* const own = y[tile_of(k, i)] + i % 2;
        const float xh = own[0] = normalised(own[0], mean, rstd);
        const float xh_tangent = own[2] =
            normalised_tangent(own[2], mean_tangent, rstd, projection, xh);
        const bool idle = weight * xh + bias <= 0.0f;
        const float dz = idle ? 0.0f : grad, dz_tangent = idle ? 0.0f : grad_tangent;
        own_sums[0] += dz;
        own_sums[1] += dz * xh;
        own_sums[2] += dz_tangent;
        own_sums[3] += product_tangent(dz, dz_tangent, xh, xh_tangent);
      }
    }
  }
  TM_UNROLL
  for (int n = 0; n < 4; ++n) sums.add(n, own_sums[n]);
  __syncthreads();
  if (sums.end_first_launch()) return;
  TM_UNROLL
  for (int n = 0; n < 4; ++n) own_sums[n] = sums.get(n);
  if (part.leads()) {
    float* const affine =
        p.out.affine + 2 * part.image * shape.channels + part.first_channel + part.g;
    affine[0] = own_sums[3];
    affine[shape.channels] = own_sums[2];
  }
  const float rstd = tangents.rstd[statistic], projection = p.projection[statistic];
  const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
  const float weight_tangent = tangents.norm_weight_tangent[c];
  const float one = weight * own_sums[0] * sums.inverse_pixels();  // <dxh>
  const float two = weight * own_sums[1] * sums.inverse_pixels();  // <dxh xh>
  const float one_tangent =
      product_tangent(weight, weight_tangent, own_sums[0], own_sums[2]) * sums.inverse_pixels();
  const float two_tangent =
      product_tangent(weight, weight_tangent, own_sums[1], own_sums[3]) * sums.inverse_pixels();
  TM_UNROLL
  for (int k = 0; k < kWindows; ++k) {
    const float grad = memory.grads[k * kThreads];
    const float grad_tangent = memory.grads[(8 + k) * kThreads];
    TM_UNROLL
    for (int i = 0; i < 4; ++i) {
      float* const own = y[tile_of(k, i)] + i % 2;
      const float xh = own[0], xh_tangent = own[2];
      const bool idle = weight * xh + bias <= 0.0f;
      const float dz = idle ? 0.0f : grad, dz_tangent = idle ? 0.0f : grad_tangent;
      const float dy = own[0] = rstd * centred(weight * dz, one, two, xh);
      const float dxh_tangent = product_tangent(weight, weight_tangent, dz, dz_tangent);
      own[2] = rstd * centred_tangent(dxh_tangent, one_tangent, two, two_tangent, xh, xh_tangent) -
               projection * dy;
    }
  }
  weight_gradient<channels>(part, memory, y, p.out.weight);
  if (p.out.images != nullptr) {
    __syncthreads();
    image_gradient<channels>(shape, part, memory, y, p.out.images);
  }
}

}  // namespace

void launch_first_layer_backward_tangent(const FirstLayerBackwardTangent& params, Stream stream) {
  with_launches(params.in.shape, true, [&](auto channels, auto launch, dim3 grid) {
    constexpr size_t kBytes = BackwardMemory<channels(), launch()>::kBytes;
    allow_dynamic_shared(first_layer_backward_tangent_kernel<channels(), launch()>, kBytes);
    TM_LAUNCH((first_layer_backward_tangent_kernel<channels(), launch()>), grid, kThreads, kBytes,
              stream, params);
  });
}

}  // namespace trajmatch::cuda
