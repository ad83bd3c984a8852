// Norm, activation and pooling, forward: out, mean and 1 / standard deviation from x.
//
// Block and thread mapping: cuda/norm_act_pool_tiling.cuh. The mean is computed first, then the
// squared deviations from it, which loses no accuracy when the mean is large. A thread adds its own
// pixels in the dtype of the activations, compensated in the general kernel. All other sums are
// float64. Deterministic. No argument may alias another.
//
// Bytes per activation in float32 for the held kernel: 4 read + 1 written with 2x2 pooling, 4 + 4
// without. At the 4.3 TB/s of an H200, 100 images of 32 x 32 x 128 take 15 microseconds. The
// general kernel reads x up to three times.

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_dispatch.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

// Windows that a thread keeps in registers: 32 pixels.
struct ForwardSlots {
  template <Pooling pooling>
  TM_HD static constexpr int windows() {
    return pooling == Pooling::kNone ? 32 : 8;
  }
};

template <class T, Pooling pooling, bool held, class Act>
__global__ void __launch_bounds__(kPlaneThreads<T>, 1)
    norm_act_pool_forward_kernel(NormActPoolForward<T> p, Tiling tiling, Act activation) {
  constexpr int kSlots = ForwardSlots::windows<pooling>();
  TM_DYNAMIC_SHARED(double, shared);
  const NormActPoolShape& shape = p.shape;
  const Part part(shape, tiling, held ? 1 : tiling.parts);
  const T* const x = p.x + part.image * shape.pixels() * shape.channels;
  T* const out = p.out + part.image * shape.out_height() * shape.out_width() * shape.channels;
  Pixels<T, pooling, held, kSlots> pixels;

  for_channels<held>(part, [&](int channel, bool active) {
    if (active) pixels.hold(shape, part, x + channel);
  });
  // Sums value(pixel) over the norm group. Returns false in the launch that only stores sum
  // `which`.
  const auto sum_group = [&](int which, double (&sum)[1], const auto& value) {
    sum[0] = 0.0;
    for_channels<held>(part, [&](int channel, bool active) {
      if (!active || (!held && tiling.phase > which)) return;
      Partial<T, held> partial{};
      for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
        pixels.fetch(window, x + channel);
        for (int k = 0; k < kWindow<pooling>; ++k) {
          if (window.has(k)) partial += value(pixels.value[slot][k]);
        }
      });
      sum[0] += partial;
    });
    const int channel = part.first + part.lane;
    if (!finish_sums<held>(sum, which, channel, channel < part.end, shape, part, tiling, shared)) {
      return false;
    }
    sum_over_group(sum, tiling);
    return true;
  };
  T mean = 0, rstd = 1;
  if (shape.groups > 0) {
    double sum[1];
    if (!sum_group(0, sum, [](T value) { return value; })) return;
    mean = static_cast<T>(sum[0] * tiling.inverse_count);
    const auto square = [mean](T value) { return (value - mean) * (value - mean); };
    if (!sum_group(1, sum, square)) return;
    rstd = static_cast<T>(rsqrt(sum[0] * tiling.inverse_count + shape.eps));
    if (part.leads_group) {
      p.mean[part.group] = mean;
      p.rstd[part.group] = rstd;
    }
  }

  for_channels<held>(part, [&](int channel, bool active) {
    if (!active) return;
    const Coefficient<T, held> weight(shape, part, p.weight, T(1), channel, active);
    const Coefficient<T, held> bias(shape, part, p.bias, T(0), channel, active);
    for_windows<pooling, held, kSlots>(shape, part, [&](int slot, const Window<pooling>& window) {
      if (!window.complete()) return;
      pixels.fetch(window, x + channel);
      T value[kWindow<pooling>], share[kWindow<pooling>];
      for (int k = 0; k < kWindow<pooling>; ++k) {
        const T xh = normalised(pixels.value[slot][k], mean, rstd);
        const int offset = window.offset(k);
        value[k] = activation(xh * weight.at(offset) + bias.at(offset)).value;
      }
      pool_shares<pooling>(value, share);
      T pooled = 0;
      for (int k = 0; k < kWindow<pooling>; ++k) pooled += share[k] * value[k];
      out[window.out + channel] = rounded(p.rounds, pooled);
    });
  });
}

}  // namespace

template <class T>
void launch_norm_act_pool_forward(const NormActPoolForward<T>& params, Stream stream) {
  if (params.shape.images() == 0) return;
  with_kernel<T, ForwardSlots>(
      params.shape, params.sums, 2,
      [&](auto pooling, auto held, auto activation, const Plan& plan) {
        using Act = decltype(activation);
        TM_LAUNCH((norm_act_pool_forward_kernel<T, pooling(), held(), Act>), plan.blocks,
                  plan.threads(), plan.shared_bytes(1), stream, params, plan.tiling, activation);
      });
}

template void launch_norm_act_pool_forward(const NormActPoolForward<float>&, Stream);
template void launch_norm_act_pool_forward(const NormActPoolForward<double>&, Stream);

}  // namespace trajmatch::cuda
