// Norm, activation and pooling, tangent of the backward pass: the derivatives of the gradients of
// x, weight and bias along tangents of x, weight, bias and the gradient of out.
//
// Block and thread mapping: cuda/norm_act_pool_tiling.cuh. The kernel first sums dz, dz xh and
// their tangents for each channel. These sums give the image's part of the tangents of the
// gradients of weight and bias. With weight and its tangent they also give the group's means, from
// which dx and dx' follow. A thread adds its own pixels in the dtype of the activations,
// compensated in the general kernel. All its other sums are float64. cuda/sum_shares.cu adds over
// the images. Deterministic. No argument may alias another.
//
// Bytes per activation in float32 for the held kernel if dx is wanted: 10 read + 8 written with 2x2
// pooling, 16 + 8 without. At the 4.3 TB/s of an H200, 100 images of 32 x 32 x 128 take 55
// microseconds. The general kernel reads its inputs twice.

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_dispatch.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

// Windows that a thread keeps in registers: 16 pixels of x and of its tangent, with 4 of each
// gradient or, without pooling, 16 of each.
struct BackwardTangentSlots {
  template <Pooling pooling>
  TM_HD static constexpr int windows() {
    return pooling == Pooling::kNone ? 16 : 4;
  }
};

// xh and dz of a window, with their tangents.
template <class T, int pixels>
struct WindowTangent {
  T xh[pixels], xh_t[pixels], dz[pixels], dz_t[pixels];
};

// Weight and bias at one channel, with their tangents.
template <class T, bool held>
struct AffineTangent {
  __device__ __forceinline__ AffineTangent(const NormActPoolBackwardTangent<T>& p, const Part& part,
                                           int channel, bool active)
      : weight(p.shape, part, p.weight, T(1), channel, active),
        bias(p.shape, part, p.bias, T(0), channel, active),
        weight_tangent(p.shape, part, p.weight_tangent, T(0), channel, active),
        bias_tangent(p.shape, part, p.bias_tangent, T(0), channel, active) {}
  Coefficient<T, held> weight, bias, weight_tangent, bias_tangent;
};

template <class T, Pooling pooling, bool held, class Act>
__global__ void __launch_bounds__(kPlaneThreads<T>, 1)
    norm_act_pool_backward_tangent_kernel(NormActPoolBackwardTangent<T> p, Tiling tiling,
                                          Act activation) {
  constexpr int kPixels = kWindow<pooling>;
  constexpr int kSlots = BackwardTangentSlots::windows<pooling>();
  TM_DYNAMIC_SHARED(double, shared);
  const NormActPoolShape& shape = p.shape;
  const Part part(shape, tiling, held ? 1 : tiling.parts);
  const int64_t in_image = part.image * shape.pixels() * shape.channels;
  const int64_t out_image = part.image * shape.out_height() * shape.out_width() * shape.channels;
  const T* const x = p.x + in_image;
  const T* const x_tangent = p.x_tangent + in_image;
  const T* const grad_out = p.grad_out + out_image;
  const bool want_affine = p.partial_grad_affine != nullptr;
  const bool elementwise = !held && shape.elementwise;
  const bool has_norm = shape.groups > 0;
  const T mean = has_norm ? p.mean[part.group] : T(0);
  const T rstd = has_norm ? p.rstd[part.group] : T(1);
  const T mean_tangent = has_norm ? p.mean_tangent[part.group] : T(0);
  const T projection = has_norm ? p.projection[part.group] : T(0);
  Pixels<T, pooling, held, kSlots> pixels, tangents;
  PooledPixels<T, held, kSlots> grads, grad_tangents;

  const auto grad_out_tangent = [&](int channel) {
    return p.grad_out_tangent == nullptr ? nullptr : p.grad_out_tangent + out_image + channel;
  };
  // Computes xh, dz and their tangents for a window. If the window has no output, its gradients are
  // 0, and so are dz and its tangent.
  const auto differentiate = [&](int slot, const Window<pooling>& window, int channel,
                                 const AffineTangent<T, held>& affine) {
    pixels.fetch(window, x + channel);
    tangents.fetch(window, x_tangent + channel);
    grads.fetch(window, grad_out + channel);
    grad_tangents.fetch(window, grad_out_tangent(channel));
    WindowTangent<T, kPixels> w;
    T value[kPixels], first[kPixels], second[kPixels], share[kPixels];
    for (int k = 0; k < kPixels; ++k) {
      const int offset = window.has(k) ? window.offset(k) : window.first;
      w.xh[k] = normalised(pixels.value[slot][k], mean, rstd);
      w.xh_t[k] =
          normalised_tangent(tangents.value[slot][k], mean_tangent, rstd, projection, w.xh[k]);
      const T weight = affine.weight.at(offset);
      const auto jet = activation(w.xh[k] * weight + affine.bias.at(offset));
      value[k] = jet.value;
      first[k] = jet.first;
      // act'' z'
      second[k] = jet.second * affine_tangent(weight, affine.weight_tangent.at(offset),
                                              affine.bias_tangent.at(offset), w.xh[k], w.xh_t[k]);
    }
    pool_shares<pooling>(value, share);
    for (int k = 0; k < kPixels; ++k) {
      const T da = share[k] * grads.value[slot], da_t = share[k] * grad_tangents.value[slot];
      w.dz[k] = first[k] * da;
      w.dz_t[k] = first[k] * da_t + second[k] * da;
    }
    return w;
  };

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    pixels.hold(shape, part, x + channel);
    tangents.hold(shape, part, x_tangent + channel);
    grads.template hold<pooling>(shape, part, grad_out + channel);
    grad_tangents.template hold<pooling>(shape, part, grad_out_tangent(channel));
  });
  double means[4] = {0.0, 0.0, 0.0, 0.0};  // group means <dxh>, <dxh xh> and their tangents
  if (has_norm || want_affine) {
    for_channels<held>(part, [&](int channel, bool active) {
      const AffineTangent<T, held> affine(p, part, channel, active);
      // Sums over the pixels of a channel: dz, dz xh and their tangents or, if every pixel has its
      // own weight, dxh, dxh xh and their tangents.
      double sums[4] = {0.0, 0.0, 0.0, 0.0};
      if (active && (held || tiling.phase <= 0)) {
        Partial<T, held> sum{}, product{}, sum_t{}, product_t{};
        for_windows<pooling, held, kSlots>(
            shape, part, [&](int slot, const Window<pooling>& window) {
              WindowTangent<T, kPixels> w = differentiate(slot, window, channel, affine);
              for (int k = 0; k < kPixels; ++k) {
                // Each pixel has its own weight and bias, so its products are written without a sum
                // over pixels.
                if (elementwise) {
                  if (!window.has(k)) continue;
                  const int offset = window.offset(k);
                  if (want_affine) {
                    T* const share = p.partial_grad_affine + part.image * 2 * shape.affine_size() +
                                     offset + channel;
                    share[0] = product_tangent(w.dz[k], w.dz_t[k], w.xh[k], w.xh_t[k]);
                    share[shape.affine_size()] = w.dz_t[k];
                  }
                  w.dz_t[k] = product_tangent(affine.weight.at(offset),
                                              affine.weight_tangent.at(offset), w.dz[k], w.dz_t[k]);
                  w.dz[k] *= affine.weight.at(offset);
                }
                sum += w.dz[k];
                product += w.dz[k] * w.xh[k];
                sum_t += w.dz_t[k];
                product_t += product_tangent(w.dz[k], w.dz_t[k], w.xh[k], w.xh_t[k]);
              }
            });
        sums[0] = sum;
        sums[1] = product;
        sums[2] = sum_t;
        sums[3] = product_t;
      }
      if (!finish_sums<held>(sums, 0, channel, active, shape, part, tiling, shared)) return;
      if (want_affine && !elementwise && active && threadIdx.y == 0 && part.number == 0) {
        T* const share = p.partial_grad_affine + part.image * 2 * shape.channels + channel;
        share[0] = static_cast<T>(sums[3]);
        share[shape.channels] = static_cast<T>(sums[2]);
      }
      // dxh = w dz and dxh' = w' dz + w dz'. A weight per channel is applied here, after the sum
      // over pixels, a weight per pixel inside it.
      const double weight = elementwise ? T(1) : affine.weight.at(0);
      const double weight_tangent = elementwise ? T(0) : affine.weight_tangent.at(0);
      means[0] += weight * sums[0];
      means[1] += weight * sums[1];
      means[2] += product_tangent(weight, weight_tangent, sums[0], sums[2]);
      means[3] += product_tangent(weight, weight_tangent, sums[1], sums[3]);
    });
    if (!held && tiling.phase == 0) return;
    sum_over_group(means, tiling);
  }
  // Without normalisation the means are 0, so that dx = dxh and dx' = dxh'.
  const double inverse_count = has_norm ? tiling.inverse_count : 0.0;
  const T mean_dxh = static_cast<T>(means[0] * inverse_count);
  const T mean_dxh_xh = static_cast<T>(means[1] * inverse_count);
  const T mean_dxh_t = static_cast<T>(means[2] * inverse_count);
  const T mean_dxh_xh_t = static_cast<T>(means[3] * inverse_count);

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    const AffineTangent<T, held> affine(p, part, channel, active);
    for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
      const WindowTangent<T, kPixels> w = differentiate(slot, window, channel, affine);
      for (int k = 0; k < kPixels; ++k) {
        if (!window.has(k)) continue;
        const int offset = window.offset(k);
        const T weight = affine.weight.at(offset);
        const T dxh_t =
            product_tangent(weight, affine.weight_tangent.at(offset), w.dz[k], w.dz_t[k]);
        const T dx = rstd * centred(weight * w.dz[k], mean_dxh, mean_dxh_xh, w.xh[k]);
        const T dx_t = rstd * centred_tangent(dxh_t, mean_dxh_t, mean_dxh_xh, mean_dxh_xh_t,
                                              w.xh[k], w.xh_t[k]) -
                       projection * dx;
        if (p.grad_x != nullptr) p.grad_x[in_image + offset + channel] = rounded(p.rounds, dx);
        p.grad_x_tangent[in_image + offset + channel] = rounded(p.rounds, dx_t);
      }
    });
  });
}

}  // namespace

template <class T>
void launch_norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<T>& params,
                                           Stream stream) {
  if (params.shape.images() == 0) return;
  with_kernel<T, BackwardTangentSlots>(
      params.shape, params.sums, 1,
      [&](auto pooling, auto held, auto activation, const Plan& plan) {
        using Act = decltype(activation);
        TM_LAUNCH((norm_act_pool_backward_tangent_kernel<T, pooling(), held(), Act>), plan.blocks,
                  plan.threads(), plan.shared_bytes(4), stream, params, plan.tiling, activation);
      });
  if (params.grad_weight_tangent == nullptr) return;
  launch_sum_shares(params.shape.affine_sums(params.partial_grad_affine, params.grad_weight_tangent,
                                             params.grad_bias_tangent),
                    stream);
}

template void launch_norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<float>&,
                                                    Stream);
template void launch_norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<double>&,
                                                    Stream);

}  // namespace trajmatch::cuda
