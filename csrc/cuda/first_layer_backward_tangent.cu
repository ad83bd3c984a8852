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
  TM_DYNAMIC_SHARED(float, dynamic);
  TM_SHARED(float4, shared, PlaneSums<4>::kSize / 4);
  const BackwardMemory<channels> memory(dynamic);
  const FirstLayerShape& shape = p.in.shape;
  const FirstLayerTangents& tangents = p.tangents;
  const Part<true> part(shape);
  const int64_t offset = blockIdx.z * shape.parameter_stride;
  const int pitch = static_cast<int>(shape.channels);
  const int64_t pooled = part.pooled(shape);
  load_grads(p.grad_out + pooled, pitch, memory.grads);
  load_grads(p.grad_out_tangent + pooled, pitch, memory.grads + kWindows * kThreads);
  load_image<channels>(shape, p.in.images + part.image * shape.image_size(), memory.image);
  memory.taps.load(part, p.in.weight + offset, tangents.weight_tangent + offset);
  if (p.out.images != nullptr) {
    load_image_weights<channels>(part, p.in.weight + offset, tangents.weight_tangent + offset,
                                 memory.image_weights);
  }
  __syncthreads();
  float y[kTiles][4];  // y, y, y', y'
  convolve<channels>(part, memory.taps, memory.image, y);

  // Sums of dz, dz xh, dz' and dz' xh + dz xh'.
  const PlaneSums<4> sums(reinterpret_cast<float*>(shared), part);
  const int statistic = part.statistic(shape);
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
  const float one = weight * own_sums[0] * kInversePixels;  // <dxh>
  const float two = weight * own_sums[1] * kInversePixels;  // <dxh xh>
  const float one_tangent =
      product_tangent(weight, weight_tangent, own_sums[0], own_sums[2]) * kInversePixels;
  const float two_tangent =
      product_tangent(weight, weight_tangent, own_sums[1], own_sums[3]) * kInversePixels;
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
  weight_gradient<channels>(part, memory, y,
                            p.out.weight + part.image * shape.channels * 9 * channels);
  if (p.out.images != nullptr) {
    const int64_t images = shape.trajectories * shape.batch;
    __syncthreads();
    image_gradient<channels>(shape, part, memory, y,
                             p.out.images + (part.tile * images + part.image) * shape.image_size());
  }
}

}  // namespace

void launch_first_layer_backward_tangent(const FirstLayerBackwardTangent& params, Stream stream) {
  with_channels(params.in.shape, true, [&](auto channels, dim3 grid) {
    constexpr size_t kBytes = BackwardMemory<channels()>::kBytes;
    allow_dynamic_shared(first_layer_backward_tangent_kernel<channels()>, kBytes);
    TM_LAUNCH(first_layer_backward_tangent_kernel<channels()>, grid, kThreads, kBytes, stream,
              params);
  });
}

}  // namespace trajmatch::cuda
