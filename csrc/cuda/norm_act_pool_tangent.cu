// Norm, activation and pooling, tangent of the forward pass: the derivative of out along tangents
// of x, weight and bias. Also writes m' and q, from which the backward tangent takes the
// derivatives of mean and rstd.
//
// Block and thread mapping: cuda/norm_act_pool_tiling.cuh. A thread adds its own pixels in the
// dtype of the activations, compensated in the general kernel. All other sums are float64.
// Deterministic. No argument may alias another.
//
// Bytes per activation in float32 for the held kernel: 8 read + 1 written with 2x2 pooling, 8 + 4
// without. At the 4.3 TB/s of an H200, 100 images of 32 x 32 x 128 take 27 microseconds. The
// general kernel reads x and x' twice.

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_dispatch.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

// Windows that a thread keeps in registers: 32 pixels of x and 32 of its tangent.
struct TangentSlots {
  template <Pooling pooling>
  TM_HD static constexpr int windows() {
    return pooling == Pooling::kNone ? 32 : 8;
  }
};

template <class T, Pooling pooling, bool held, class Act>
__global__ void __launch_bounds__(kPlaneThreads<T>, 1)
    norm_act_pool_tangent_kernel(NormActPoolTangent<T> p, Tiling tiling, Act activation) {
  constexpr int kSlots = TangentSlots::windows<pooling>();
  TM_DYNAMIC_SHARED(double, shared);
  const NormActPoolShape& shape = p.shape;
  const Part part(shape, tiling, held ? 1 : tiling.parts);
  const int64_t in_image = part.image * shape.pixels() * shape.channels;
  const T* const x = p.x + in_image;
  const T* const x_tangent = p.x_tangent + in_image;
  T* const out_tangent =
      p.out_tangent + part.image * shape.out_height() * shape.out_width() * shape.channels;
  Pixels<T, pooling, held, kSlots> pixels, tangents;

  T mean = 0, rstd = 1, mean_tangent = 0, projection = 0;
  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    pixels.hold(shape, part, x + channel);
    tangents.hold(shape, part, x_tangent + channel);
  });
  if (shape.groups > 0) {
    mean = p.mean[part.group];
    rstd = p.rstd[part.group];
    double sums[2] = {0.0, 0.0};  // of x' and of xh x'; missing pixels of a window add 0
    for_channels<held>(part, [&](int channel, bool active) {
      if (!active || (!held && tiling.phase > 0)) return;
      Partial<T, held> sum{}, product{};
      for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
        pixels.fetch(window, x + channel);
        tangents.fetch(window, x_tangent + channel);
        for (int k = 0; k < kWindow<pooling>; ++k) {
          const T tangent = tangents.value[slot][k];
          sum += tangent;
          product += normalised(pixels.value[slot][k], mean, rstd) * tangent;
        }
      });
      sums[0] += sum;
      sums[1] += product;
    });
    const int channel = part.first + part.lane;
    if (!finish_sums<held>(sums, 0, channel, channel < part.end, shape, part, tiling, shared))
      return;
    sum_over_group(sums, tiling);
    mean_tangent = static_cast<T>(sums[0] * tiling.inverse_count);
    projection = static_cast<T>(rstd * (sums[1] * tiling.inverse_count));
    if (part.leads_group) {
      p.mean_tangent[part.group] = mean_tangent;
      p.projection[part.group] = projection;
    }
  }

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    const Coefficient<T, held> weight(shape, part, p.weight, T(1), channel, active);
    const Coefficient<T, held> bias(shape, part, p.bias, T(0), channel, active);
    const Coefficient<T, held> weight_tangent(shape, part, p.weight_tangent, T(0), channel, active);
    const Coefficient<T, held> bias_tangent(shape, part, p.bias_tangent, T(0), channel, active);
    for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
      if (!window.complete()) return;
      pixels.fetch(window, x + channel);
      tangents.fetch(window, x_tangent + channel);
      T value[kWindow<pooling>], tangent[kWindow<pooling>], share[kWindow<pooling>];
      for (int k = 0; k < kWindow<pooling>; ++k) {
        const int offset = window.offset(k);
        const T w = weight.at(offset);
        const T xh = normalised(pixels.value[slot][k], mean, rstd);
        const T xh_t =
            normalised_tangent(tangents.value[slot][k], mean_tangent, rstd, projection, xh);
        const auto jet = activation(xh * w + bias.at(offset));
        value[k] = jet.value;
        tangent[k] = jet.first * affine_tangent(w, weight_tangent.at(offset),
                                                bias_tangent.at(offset), xh, xh_t);
      }
      pool_shares<pooling>(value, share);
      T pooled = 0;
      for (int k = 0; k < kWindow<pooling>; ++k) pooled += share[k] * tangent[k];
      out_tangent[window.out + channel] = rounded(p.rounds, pooled);
    });
  });
}

}  // namespace

template <class T>
void launch_norm_act_pool_tangent(const NormActPoolTangent<T>& params, Stream stream) {
  if (params.shape.images() == 0) return;
  with_kernel<T, TangentSlots>(
      params.shape, params.sums, 1,
      [&](auto pooling, auto held, auto activation, const Plan& plan) {
        using Act = decltype(activation);
        TM_LAUNCH((norm_act_pool_tangent_kernel<T, pooling(), held(), Act>), plan.blocks,
                  plan.threads(), plan.shared_bytes(2), stream, params, plan.tiling, activation);
      });
}

template void launch_norm_act_pool_tangent(const NormActPoolTangent<float>&, Stream);
template void launch_norm_act_pool_tangent(const NormActPoolTangent<double>&, Stream);

}  // namespace trajmatch::cuda
