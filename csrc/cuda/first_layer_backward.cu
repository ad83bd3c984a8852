// The first layer, backward: computes y again from the images, then the gradients of weights, norm
// parameters and, if wanted, images from the gradient of out (formulas: core/first_layer.h).
//
// Block tile and thread mapping: cuda/first_layer_tile.cuh. dy goes to shared memory for the two
// products. Each block writes partial sums of the results that it shares with other blocks, and a
// second launch adds them. Sums within a block are float32 in a fixed order. Sums over blocks are
// float64. Deterministic. No argument may alias another.

#include "cuda/first_layer_backward.cuh"
#include "cuda/sum_shares.cuh"

namespace trajmatch::cuda {

namespace first_layer {

void launch_first_layer_sums(const FirstLayerShape& shape, bool tangent,
                             const FirstLayerGradients& out, Stream stream) {
  const int64_t c = shape.channels, weights = c * shape.taps(), batch = shape.batch;
  const int64_t images = batch * shape.image_size(), stride = shape.parameter_stride;
  ShareSums sums{
      {{out.partial_weight, out.grad_weight, batch, weights, weights, batch * weights, stride},
       {out.partial_affine, out.grad_norm_weight, batch, 2 * c, c, batch * 2 * c, stride},
       {out.partial_affine + c, out.grad_norm_bias, batch, 2 * c, c, batch * 2 * c, stride},
       {out.partial_images, out.grad_images, shape.tiles(tangent), shape.trajectories * images,
        images, images, images}},
      out.grad_images == nullptr ? 3 : 4,
      shape.trajectories};
  launch_sum_shares(sums, stream);
}

}  // namespace first_layer

namespace {

using namespace first_layer;

template <int channels>
__global__ void __launch_bounds__(kThreads, 2) first_layer_backward_kernel(FirstLayerBackward p) {
  constexpr int kTaps = 9 * channels;
  TM_DYNAMIC_SHARED(float, dynamic);
  TM_SHARED(float, shared, PlaneSums<2 * kGroupPlanes>::kSize);
  const BackwardMemory<channels> memory(dynamic);
  const FirstLayerShape& shape = p.in.shape;
  const Part<false> part(shape);
  const int64_t offset = part.trajectory * shape.parameter_stride;
  load_image<channels>(shape, p.in.images + part.image * shape.image_size(), memory.image);
  load_weights<kTaps>(part, p.in.weight + offset, nullptr, memory.weights);
  clear_borders(memory.planes);
  __syncthreads();
  float y[kGroupPlanes][8];
  convolve<channels>(part, memory.image, memory.weights, y);

  // dz is 0 or a quarter of the gradient of its window. It is computed twice, because registers are
  // scarce.
  const float* const grad_out = p.grad_out + part.pooled(shape);
  const PlaneSums<2 * kGroupPlanes> sums(shared);  // sums of dz, then of dz xh
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    const float mean = p.mean[part.statistic(shape) + n];
    const float rstd = p.rstd[part.statistic(shape) + n];
    const float weight = p.in.norm_weight[offset + part.channel + n];
    const float bias = p.in.norm_bias[offset + part.channel + n];
    const float grad[2] = {0.25f * grad_out[n], 0.25f * grad_out[shape.channels + n]};
    float sum = 0.0f, product = 0.0f;
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float xh = y[n][i] = normalised(y[n][i], mean, rstd);
      const float dz = weight * xh + bias <= 0.0f ? 0.0f : grad[i % 4 / 2];
      sum += dz;
      product += dz * xh;
    }
    sums.add(n, sum);
    sums.add(kGroupPlanes + n, product);
  }
  sums.finish();
  TM_UNROLL
  for (int n = 0; n < kGroupPlanes; ++n) {
    const float rstd = p.rstd[part.statistic(shape) + n];
    const float weight = p.in.norm_weight[offset + part.channel + n];
    const float bias = p.in.norm_bias[offset + part.channel + n];
    const float grad[2] = {0.25f * grad_out[n], 0.25f * grad_out[shape.channels + n]};
    const float mean = weight * sums[n] * kInversePixels;                       // <dxh>
    const float projection = weight * sums[kGroupPlanes + n] * kInversePixels;  // <dxh xh>
    TM_UNROLL
    for (int i = 0; i < 8; ++i) {
      const float xh = y[n][i];
      const float dz = weight * xh + bias <= 0.0f ? 0.0f : grad[i % 4 / 2];
      y[n][i] = rstd * centred(weight * dz, mean, projection, xh);
    }
    store_plane(memory.planes + (part.group * kGroupPlanes + n) * kBordered, part.row, part.column,
                y[n]);
    if (threadIdx.x % kGroupThreads == 0) {
      float* const affine = p.out.partial_affine + 2 * part.image * shape.channels + part.channel;
      affine[n] = sums[kGroupPlanes + n];
      affine[shape.channels + n] = sums[n];
    }
  }
  __syncthreads();
  if (p.out.grad_images != nullptr) {
    const int64_t images = shape.trajectories * shape.batch;
    image_gradient<channels, false>(
        shape, memory.planes, memory.weights,
        p.out.partial_images + (part.tile * images + part.image) * shape.image_size());
  }
  weight_gradient<channels>(part, memory.planes, memory.image,
                            p.out.partial_weight + part.image * shape.channels * kTaps);
}

}  // namespace

// The two backward passes need the most shared memory, and both need the same amount.
bool first_layer_fits_device(const FirstLayerShape& shape) {
  return has_dynamic_shared(shape.in_channels == 1 ? BackwardMemory<1>::kBytes
                                                   : BackwardMemory<3>::kBytes);
}

void launch_first_layer_backward(const FirstLayerBackward& params, Stream stream) {
  with_channels(params.in.shape, false, [&](auto channels, dim3 grid) {
    constexpr size_t kBytes = BackwardMemory<channels()>::kBytes;
    allow_dynamic_shared(first_layer_backward_kernel<channels()>, kBytes);
    TM_LAUNCH(first_layer_backward_kernel<channels()>, grid, kThreads, kBytes, stream, params);
    launch_first_layer_sums(params.in.shape, false, params.out, stream);
  });
}

}  // namespace trajmatch::cuda
