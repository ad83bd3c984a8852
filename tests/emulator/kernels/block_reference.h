// One block of a student by its definition, for K trajectories: a convolution as its loops say, and
// the CPU's norm, activation and pooling. All four passes, in the precision T.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/fused_convolution.h"
#include "core/norm_act_pool.h"
#include "kernels/check.h"

namespace kernels {

struct BlockShape {
  int64_t trajectories, batch, in_size, in_channels, padding, channels;

  int64_t out_size() const { return in_size + 2 * padding - 2; }
  int64_t x_size() const { return batch * in_size * in_size * in_channels; }
  int64_t y_size() const { return batch * out_size() * out_size() * channels; }
  int64_t pooled_size() const { return y_size() / 4; }
  int64_t weight_size() const { return channels * in_channels * 9; }
  // A trajectory's parameters: weight, norm_weight, norm_bias, and a gap that nobody may touch.
  int64_t norm_weight_offset() const { return weight_size(); }
  int64_t norm_bias_offset() const { return weight_size() + channels; }
  int64_t parameter_stride() const { return weight_size() + 2 * channels + 3; }

  trajmatch::NormActPoolShape norm() const {
    trajmatch::NormActPoolShape shape{};
    shape.batch = batch;
    shape.height = shape.width = out_size();
    shape.channels = shape.groups = channels;
    shape.activation = trajmatch::Activation::kRelu;
    shape.pooling = trajmatch::Pooling::kAverage;
    shape.eps = 1e-5;
    return shape;
  }

  // Calls body(x, w, y) with the three indices of every product of a convolution.
  template <class Body>
  void for_products(const Body& body) const {
    const int64_t out = out_size();
    for (int64_t pixel = 0; pixel < batch * out * out; ++pixel) {
      const int64_t image = pixel / (out * out);
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t row = pixel / out % out + tap / 3 - padding;
        const int64_t column = pixel % out + tap % 3 - padding;
        if (row < 0 || row >= in_size || column < 0 || column >= in_size) continue;
        const int64_t x = ((image * in_size + row) * in_size + column) * in_channels;
        for (int64_t in = 0; in < in_channels; ++in) {
          for (int64_t c = 0; c < channels; ++c) {
            body(x + in, (c * in_channels + in) * 9 + tap, pixel * channels + c);
          }
        }
      }
    }
  }
};

// Numbers that TF32 holds: products of them are exact in every kind of product.
inline std::vector<double> held_by_tf32(std::vector<double> values) {
  for (double& value : values) {
    const float single = static_cast<float>(value);
    uint32_t bits = 0;
    std::memcpy(&bits, &single, sizeof(bits));
    if (std::isfinite(single)) bits += 0x1000u;
    bits &= ~0x1fffu;
    float kept = 0.0f;
    std::memcpy(&kept, &bits, sizeof(bits));
    value = kept;
  }
  return values;
}

// Numbers that half precision holds, of tensors that are scaled by a power of two as their largest
// magnitude says; `tensors` of them lie one behind the other.
inline std::vector<double> held_by_half(std::vector<double> values, int64_t tensors = 1) {
  const size_t size = values.size() / static_cast<size_t>(tensors);
  for (size_t first = 0; first < values.size(); first += size) {
    double largest = 0.0;
    for (size_t i = first; i < first + size; ++i) {
      if (std::isfinite(values[i])) largest = std::max(largest, std::abs(values[i]));
    }
    // 11 bits of every number, but none below 2^-24 of the scaled tensor.
    const int last = largest == 0.0 ? 0 : std::ilogb(largest) - 14 - 24;
    for (size_t i = first; i < first + size; ++i) {
      if (values[i] == 0.0 || !std::isfinite(values[i])) continue;
      const int unit = std::max(std::ilogb(values[i]) - 10, last);
      values[i] = std::ldexp(std::nearbyint(std::ldexp(values[i], -unit)), unit);
    }
  }
  return values;
}

// What products of this kind take without rounding it again.
inline std::vector<double> held_by(trajmatch::ProductKind kind, const std::vector<double>& values,
                                   int64_t tensors) {
  switch (kind) {
    case trajmatch::ProductKind::kTf32:
      return held_by_tf32(values);
    case trajmatch::ProductKind::kFp16:
      return held_by_half(values, tensors);
    default:
      return values;
  }
}

// Inputs of all trajectories, one behind the other; what is given to float32 and float64 alike.
struct BlockData {
  BlockData(const BlockShape& shape_, bool moving_input,
            trajmatch::ProductKind kind = trajmatch::ProductKind::kTf32x3)
      : shape(shape_) {
    Random random(static_cast<unsigned>(shape.y_size() + shape.in_channels));
    const int64_t k = shape.trajectories;
    x = random.normal(k * shape.x_size(), 0.5);
    if (moving_input) x_tangent = random.normal(k * shape.x_size());
    grad_out = random.normal(k * shape.pooled_size());
    grad_out_tangent = random.normal(k * shape.pooled_size());
    parameters = random.normal(k * shape.parameter_stride(), 0.2, 0.5);
    parameter_tangents = random.normal(k * shape.parameter_stride());
    for (auto* each : {&x, &x_tangent, &parameters, &parameter_tangents}) {
      *each = held_by(kind, *each, k);
    }
  }
  BlockShape shape;
  std::vector<double> x, x_tangent, grad_out, grad_out_tangent, parameters, parameter_tangents;
};

// Every result of the four passes, of all trajectories. Gradients of parameters lie like the
// parameters do, NaN in the gaps.
template <class T>
struct BlockReference {
  explicit BlockReference(const BlockData& data) : shape(data.shape) {
    const int64_t k = shape.trajectories, groups = shape.batch * shape.channels;
    for (auto* each : {&y, &y_tangent, &grad_y, &grad_y_tangent}) each->resize(k * shape.y_size());
    for (auto* each : {&out, &out_tangent}) each->resize(k * shape.pooled_size());
    for (auto* each : {&mean, &rstd, &mean_tangent, &projection}) each->resize(k * groups);
    for (auto* each : {&grad_x, &grad_x_tangent}) each->resize(k * shape.x_size());
    for (auto* each : {&grad_parameters, &grad_parameter_tangents}) {
      each->assign(k * shape.parameter_stride(), std::numeric_limits<T>::quiet_NaN());
    }
    x = converted(data.x);
    x_tangent = converted(data.x_tangent);
    grad_out = converted(data.grad_out);
    grad_out_tangent = converted(data.grad_out_tangent);
    parameters = converted(data.parameters);
    parameter_tangents = converted(data.parameter_tangents);
    for (int64_t trajectory = 0; trajectory < k; ++trajectory) run(trajectory);
  }

  BlockShape shape;
  std::vector<T> x, x_tangent, grad_out, grad_out_tangent, parameters, parameter_tangents;
  std::vector<T> y, y_tangent, grad_y, grad_y_tangent, out, out_tangent;
  std::vector<T> mean, rstd, mean_tangent, projection, grad_x, grad_x_tangent;
  std::vector<T> grad_parameters, grad_parameter_tangents;

 private:
  static std::vector<T> converted(const std::vector<double>& values) {
    return {values.begin(), values.end()};
  }

  void run(int64_t k) {
    const trajmatch::NormActPoolShape norm = shape.norm();
    const int64_t in = k * shape.x_size(), inner = k * shape.y_size();
    const int64_t pooled = k * shape.pooled_size(), group = k * shape.batch * shape.channels;
    const int64_t own = k * shape.parameter_stride();
    const T* const w = &parameters[own];
    const T* const w_tangent = &parameter_tangents[own];
    const T* const norm_weight = w + shape.norm_weight_offset();
    const T* const norm_bias = w + shape.norm_bias_offset();
    const T* const norm_weight_tangent = w_tangent + shape.norm_weight_offset();
    const T* const norm_bias_tangent = w_tangent + shape.norm_bias_offset();
    const bool moving = !x_tangent.empty();

    shape.for_products([&](int64_t i, int64_t j, int64_t o) {
      y[inner + o] += x[in + i] * w[j];
      y_tangent[inner + o] += x[in + i] * w_tangent[j];
      if (moving) y_tangent[inner + o] += x_tangent[in + i] * w[j];
    });
    trajmatch::cpu::norm_act_pool_forward<T>(
        {norm, &y[inner], norm_weight, norm_bias, &out[pooled], &mean[group], &rstd[group]}, 0,
        shape.batch);
    trajmatch::cpu::norm_act_pool_tangent<T>(
        {norm, &y[inner], norm_weight, norm_bias, &mean[group], &rstd[group], &y_tangent[inner],
         norm_weight_tangent, norm_bias_tangent, &out_tangent[pooled], &mean_tangent[group],
         &projection[group]},
        0, shape.batch);

    std::vector<T> partial(2 * shape.batch * shape.channels);
    T* const gradient = &grad_parameters[own];
    trajmatch::cpu::norm_act_pool_backward<T>(
        {norm, &y[inner], norm_weight, norm_bias, &mean[group], &rstd[group], &grad_out[pooled],
         &grad_y[inner], partial.data(), gradient + shape.norm_weight_offset(),
         gradient + shape.norm_bias_offset()},
        0, shape.batch);
    trajmatch::cpu::sum_partial_affine<T>(norm, partial.data(),
                                          gradient + shape.norm_weight_offset(),
                                          gradient + shape.norm_bias_offset());
    T* const tangent = &grad_parameter_tangents[own];
    trajmatch::cpu::norm_act_pool_backward_tangent<T>(
        {norm, &y[inner], norm_weight, norm_bias, &mean[group], &rstd[group], &y_tangent[inner],
         norm_weight_tangent, norm_bias_tangent, &mean_tangent[group], &projection[group],
         &grad_out[pooled], &grad_out_tangent[pooled], nullptr, &grad_y_tangent[inner],
         partial.data(), tangent + shape.norm_weight_offset(), tangent + shape.norm_bias_offset()},
        0, shape.batch);
    trajmatch::cpu::sum_partial_affine<T>(norm, partial.data(),
                                          tangent + shape.norm_weight_offset(),
                                          tangent + shape.norm_bias_offset());

    for (int64_t j = 0; j < shape.weight_size(); ++j) gradient[j] = tangent[j] = 0;
    shape.for_products([&](int64_t i, int64_t j, int64_t o) {
      const T dy = grad_y[inner + o], dy_tangent = grad_y_tangent[inner + o];
      grad_x[in + i] += w[j] * dy;
      grad_x_tangent[in + i] += w[j] * dy_tangent + w_tangent[j] * dy;
      gradient[j] += x[in + i] * dy;
      tangent[j] += x[in + i] * dy_tangent;
      if (moving) tangent[j] += x_tangent[in + i] * dy;
    });
  }
};

// The reference in both precisions.
struct BlockReferences {
  explicit BlockReferences(const BlockData& data) : exact(data), single(data) {}

  template <class T>
  const BlockReference<T>& of() const {
    if constexpr (std::is_same_v<T, double>) {
      return exact;
    } else {
      return single;
    }
  }
  BlockReference<double> exact;
  BlockReference<float> single;
};

// The numbers of a result as float64, for Outputs.
template <class T>
std::vector<double> widened(const std::vector<T>& values) {
  return {values.begin(), values.end()};
}

}  // namespace kernels
