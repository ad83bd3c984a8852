// Norm, activation and pooling, backward: the gradients of x, weight and bias from the gradient of
// out.
//
// Block and thread mapping: cuda/norm_act_pool_tiling.cuh. The kernel first sums dz and dz xh for
// each channel. These sums are the image's part of the gradients of bias and weight. Multiplied by
// weight they also give the group's means, from which dx follows. A thread adds its own pixels in
// the dtype of the activations, compensated in the general kernel. All its other sums are float64.
// cuda/sum_shares.cu adds the gradients over the images. Deterministic. No argument may alias
// another.
//
// Bytes per activation in float32 for the held kernel: 5 read + 4 written with 2x2 pooling, 8 + 4
// without. At the 4.3 TB/s of an H200, 100 images of 32 x 32 x 128 take 27 microseconds. The
// general kernel reads its inputs twice.

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_dispatch.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

// Windows that a thread keeps in registers: 32 pixels of x and 8 of the gradient or, without
// pooling, 16 of each.
struct BackwardSlots {
  template <Pooling pooling>
  TM_HD static constexpr int windows() {
    return pooling == Pooling::kNone ? 16 : 8;
  }
};

template <class T, Pooling pooling, bool held, class Act>
__global__ void __launch_bounds__(kPlaneThreads<T>, 1)
    norm_act_pool_backward_kernel(NormActPoolBackward<T> p, Tiling tiling, Act activation) {
  constexpr int kPixels = kWindow<pooling>;
  constexpr int kSlots = BackwardSlots::windows<pooling>();
  TM_DYNAMIC_SHARED(double, shared);
  const NormActPoolShape& shape = p.shape;
  const Part part(shape, tiling, held ? 1 : tiling.parts);
  const int64_t in_image = part.image * shape.pixels() * shape.channels;
  const T* const x = p.x + in_image;
  const T* const grad_out =
      p.grad_out + part.image * shape.out_height() * shape.out_width() * shape.channels;
  T* const grad_x = p.grad_x + in_image;
  const bool want_affine = p.partial_grad_affine != nullptr;
  const bool elementwise = !held && shape.elementwise;
  const bool has_norm = shape.groups > 0;
  const T mean = has_norm ? p.mean[part.group] : T(0);
  const T rstd = has_norm ? p.rstd[part.group] : T(1);
  Pixels<T, pooling, held, kSlots> pixels;
  PooledPixels<T, held, kSlots> grads;

  // Computes xh and dz of a window. A window without an output has gradient 0, so every dz is 0.
  const auto differentiate =
      [&](int slot, const Window<pooling>& window, int channel, const Coefficient<T, held>& weight,
          const Coefficient<T, held>& bias, T(&xh)[kPixels], T(&dz)[kPixels]) {
        pixels.fetch(window, x + channel);
        grads.fetch(window, grad_out + channel);
        T value[kPixels], first[kPixels], share[kPixels];
        for (int k = 0; k < kPixels; ++k) {
          xh[k] = normalised(pixels.value[slot][k], mean, rstd);
          const int offset = window.has(k) ? window.offset(k) : window.first;
          const auto jet = activation(xh[k] * weight.at(offset) + bias.at(offset));
          value[k] = jet.value;
          first[k] = jet.first;
        }
        pool_shares<pooling>(value, share);
        for (int k = 0; k < kPixels; ++k) dz[k] = first[k] * (share[k] * grads.value[slot]);
      };

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    pixels.hold(shape, part, x + channel);
    grads.template hold<pooling>(shape, part, grad_out + channel);
  });
  double means[2] = {0.0, 0.0};  // <dxh>, <dxh xh>
  if (has_norm || want_affine) {
    for_channels<held>(part, [&](int channel, bool active) {
      const Coefficient<T, held> weight(shape, part, p.weight, T(1), channel, active);
      const Coefficient<T, held> bias(shape, part, p.bias, T(0), channel, active);
      // Sums over the pixels of a channel: dz and dz xh or, if every pixel has its own weight, dxh
      // and dxh xh.
      double sums[2] = {0.0, 0.0};
      if (active && (held || tiling.phase <= 0)) {
        Partial<T, held> sum{}, product{};
        T* const weight_share = p.partial_grad_affine + part.image * 2 * shape.affine_size();
        for_windows<pooling, held, kSlots>(
            shape, part, [&](int slot, const Window<pooling>& window) {
              T xh[kPixels], dz[kPixels];
              differentiate(slot, window, channel, weight, bias, xh, dz);
              for (int k = 0; k < kPixels; ++k) {
                // Each pixel has its own weight and bias, so its products are written without a sum
                // over pixels.
                if (elementwise) {
                  if (!window.has(k)) continue;
                  const int offset = window.offset(k);
                  if (want_affine) {
                    weight_share[offset + channel] = dz[k] * xh[k];
                    weight_share[shape.affine_size() + offset + channel] = dz[k];
                  }
                  dz[k] *= weight.at(offset);
                }
                sum += dz[k];
                product += dz[k] * xh[k];
              }
            });
        sums[0] = sum;
        sums[1] = product;
      }
      if (!finish_sums<held>(sums, 0, channel, active, shape, part, tiling, shared)) return;
      if (want_affine && !elementwise && active && threadIdx.y == 0 && part.number == 0) {
        T* const share = p.partial_grad_affine + part.image * 2 * shape.channels + channel;
        share[0] = static_cast<T>(sums[1]);
        share[shape.channels] = static_cast<T>(sums[0]);
      }
      // A weight per channel is applied after the sum over pixels, a weight per pixel inside it.
      const double outside = elementwise ? T(1) : weight.at(0);
      means[0] += outside * sums[0];
      means[1] += outside * sums[1];
    });
    if (!held && tiling.phase == 0) return;
    sum_over_group(means, tiling);
  }
  // Without normalisation the means are 0, so that dx = dxh.
  const double inverse_count = has_norm ? tiling.inverse_count : 0.0;
  const T mean_dxh = static_cast<T>(means[0] * inverse_count);
  const T mean_dxh_xh = static_cast<T>(means[1] * inverse_count);

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    const Coefficient<T, held> weight(shape, part, p.weight, T(1), channel, active);
    const Coefficient<T, held> bias(shape, part, p.bias, T(0), channel, active);
    for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
      T xh[kPixels], dz[kPixels];
      differentiate(slot, window, channel, weight, bias, xh, dz);
      for (int k = 0; k < kPixels; ++k) {
        if (!window.has(k)) continue;
        const int offset = window.offset(k);
        const T dx = rstd * centred(weight.at(offset) * dz[k], mean_dxh, mean_dxh_xh, xh[k]);
        grad_x[offset + channel] = rounded(p.rounds, dx);
      }
    });
  });
}

}  // namespace

template <class T>
void launch_norm_act_pool_backward(const NormActPoolBackward<T>& params, Stream stream) {
  if (params.shape.images() == 0) return;
  with_kernel<T, BackwardSlots>(
      params.shape, params.sums, 1,
      [&](auto pooling, auto held, auto activation, const Plan& plan) {
        using Act = decltype(activation);
        TM_LAUNCH((norm_act_pool_backward_kernel<T, pooling(), held(), Act>), plan.blocks,
                  plan.threads(), plan.shared_bytes(2), stream, params, plan.tiling, activation);
      });
  if (params.grad_weight == nullptr) return;
  launch_sum_shares(
      params.shape.affine_sums(params.partial_grad_affine, params.grad_weight, params.grad_bias),
      stream);
}

template void launch_norm_act_pool_backward(const NormActPoolBackward<float>&, Stream);
template void launch_norm_act_pool_backward(const NormActPoolBackward<double>&, Stream);

}  // namespace trajmatch::cuda
