// The first layer, backward: computes y again from the images, then the gradients of weights, norm
// parameters and, if wanted, images from the gradient of out (formulas: core/first_layer.h).
//
// Block tile and thread mapping: cuda/first_layer_tile.cuh. Each block writes partial sums of the
// results that it shares with other blocks, and cuda/sum_shares.cu or, for images of several
// squares, cuda/first_layer_squares.cu adds them. Sums within a block and over the squares of a
// plane are float32 in a fixed order. Deterministic. No argument may alias another.

#include "cuda/first_layer_backward.cuh"

namespace trajmatch::cuda {

namespace {

using namespace first_layer;

template <int channels, Launch launch>
__global__ void __launch_bounds__(kThreads, 2) first_layer_backward_kernel(FirstLayerBackward p) {
  using Part = PartOf<false, launch>;
  using Sums = PlaneSums<4, Part>;
  TM_DYNAMIC_SHARED(float, dynamic);
  TM_SHARED(float4, shared, Sums::kSize / 4);
  const BackwardMemory<channels, launch> memory(dynamic);
  const FirstLayerShape& shape = p.in.shape;
  const Part part(shape);
  // sums of dz and dz xh, for each r
  const Sums sums(reinterpret_cast<float*>(shared), part, p.in.sums);
  const int64_t offset = blockIdx.z * shape.parameter_stride;
  const float* const grad_out = p.grad_out + part.pooled(shape);
  load_grads(part, grad_out, memory.grads);
  load_grads(part, grad_out + 8, memory.grads + kWindows * kThreads);
  load_image<channels>(shape, part, p.in.images, memory.image);
  memory.taps.load(part, p.in.weight + offset, nullptr);
  if (launch != Launch::kFirst && p.out.images != nullptr) {
    load_image_weights<channels>(part, p.in.weight + offset, nullptr, memory.image_weights);
  }
  __syncthreads();
  float y[kTiles][4];
  convolve<channels>(part, memory.taps, memory.image, y);

  // dz is 0 or a quarter of the gradient of its window. It is computed twice, because registers are
  // scarce.
  TM_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int statistic = part.statistic() + 8 * r;
    const float mean = p.mean[statistic], rstd = p.rstd[statistic];
    const int64_t c = offset + part.first_channel + part.g + 8 * r;
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    float sum = 0.0f, product = 0.0f;
    TM_UNROLL
    for (int k = 0; k < kWindows; ++k) {
      const float grad = memory.grads[(8 * r + k) * kThreads];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& own = y[tile_of(k, i)][2 * r + i % 2];
        own = normalised(own, mean, rstd);
        const float dz = weight * own + bias <= 0.0f ? 0.0f : grad;
        sum += dz;
        product += dz * own;
      }
    }
    sums.add(2 * r, sum);
    sums.add(2 * r + 1, product);
  }
  __syncthreads();
  if (sums.end_first_launch()) return;
  TM_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t c = offset + part.first_channel + part.g + 8 * r;
    const float rstd = p.rstd[part.statistic() + 8 * r];
    const float weight = p.in.norm_weight[c], bias = p.in.norm_bias[c];
    const float sum = sums.get(2 * r), product = sums.get(2 * r + 1);
    if (part.leads()) {
      float* const affine =
          p.out.affine + 2 * part.image * shape.channels + part.first_channel + part.g + 8 * r;
      affine[0] = product;
      affine[shape.channels] = sum;
    }
    const float mean = weight * sum * sums.inverse_pixels();            // <dxh>
    const float projection = weight * product * sums.inverse_pixels();  // <dxh xh>
    TM_UNROLL
    for (int k = 0; k < kWindows; ++k) {
      const float grad = memory.grads[(8 * r + k) * kThreads];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        float& own = y[tile_of(k, i)][2 * r + i % 2];
        const float dz = weight * own + bias <= 0.0f ? 0.0f : grad;
        own = rstd * centred(weight * dz, mean, projection, own);
      }
    }
    // Keeps the compiler from loading the inputs of both r at once, which would spill registers.
    if (launch != Launch::kOnly) __syncwarp();
  }
  weight_gradient<channels>(part, memory, y, p.out.weight);
  if (p.out.images != nullptr) {
    __syncthreads();
    image_gradient<channels>(shape, part, memory, y, p.out.images);
  }
}

}  // namespace

// The two backward passes need the most shared memory, and both need the same amount.
bool first_layer_fits_device(const FirstLayerShape& shape) {
  return has_tensor_cores() &&
         has_dynamic_shared(shape.in_channels == 1 ? BackwardMemory<1, Launch::kOnly>::kBytes
                                                   : BackwardMemory<3, Launch::kOnly>::kBytes);
}

void launch_first_layer_backward(const FirstLayerBackward& params, Stream stream) {
  with_launches(params.in.shape, false, [&](auto channels, auto launch, dim3 grid) {
    constexpr size_t kBytes = BackwardMemory<channels(), launch()>::kBytes;
    allow_dynamic_shared(first_layer_backward_kernel<channels(), launch()>, kBytes);
    TM_LAUNCH((first_layer_backward_kernel<channels(), launch()>), grid, kThreads, kBytes, stream,
              params);
  });
}

}  // namespace trajmatch::cuda
