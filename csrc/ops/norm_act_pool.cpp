#include "core/norm_act_pool.h"

#include "ops/checks.h"
#include "ops/operators.h"
#include "ops/run.h"

namespace trajmatch {

namespace {

// The arguments shared by all passes, checked and converted to the layout of the kernels.
struct Arguments {
  Arguments(const Check& check, const Tensor& x_in, const OptionalTensor& weight_in,
            const OptionalTensor& bias_in, int64_t groups, bool elementwise, int64_t activation,
            int64_t pooling, double eps) {
    check.floating(x_in, "x");
    check.dim(x_in, "x", 4);
    const Ints sizes = sizes_of(x_in);
    check.that(x_in.numel() > 0, "x", "have no empty dimension", text(sizes));
    check.that(groups >= 0 && (groups == 0 || sizes[1] % groups == 0), "groups",
               "divide the " + std::to_string(sizes[1]) + " channels of x", std::to_string(groups));
    check.that(activation >= 0 && activation <= 3, "activation", "lie in 0..3",
               std::to_string(activation));
    check.that(pooling >= 0 && pooling <= 2, "pooling", "lie in 0..2", std::to_string(pooling));
    check.that(pooling == 0 || (sizes[2] >= 2 && sizes[3] >= 2), "x",
               "have at least 2 x 2 pixels to pool", text(sizes));
    check.that(eps >= 0, "eps", "be at least 0", std::to_string(eps));
    shape = {sizes[0],
             sizes[2],
             sizes[3],
             sizes[1],
             groups,
             elementwise,
             static_cast<Activation>(activation),
             static_cast<Pooling>(pooling),
             eps};
    affine_sizes = elementwise ? Ints{sizes[1], sizes[2], sizes[3]} : Ints{sizes[1]};
    statistics_sizes = {sizes[0], groups};
    out_sizes = {sizes[0], sizes[1], shape.out_height(), shape.out_width()};
    x = as_channels_last(x_in);
    weight = affine(check, weight_in, "weight");
    bias = affine(check, bias_in, "bias");
    const int64_t size = on_cuda(x) ? shape.sums_size() : 0;
    if (size > 0) sums_ = empty({size}, x, ScalarType::Double);
  }

  // Checks affine parameters (or a tangent of them) and converts them to the order of the kernels:
  // [C], or [H, W, C].
  OptionalTensor affine(const Check& check, const OptionalTensor& given, const char* name) const {
    if (!given) return std::nullopt;
    check.same(*given, name, x, "x", affine_sizes);
    if (!shape.elementwise) return as_contiguous(*given);
    Tensor result = empty({shape.affine_size()}, x);
    Tensor permuted = view(result, 0, {shape.channels, shape.pixels()}, {1, shape.channels});
    copy(permuted,
         view(as_contiguous(*given), 0, {shape.channels, shape.pixels()}, {shape.pixels(), 1}));
    return result;
  }

  // Converts a gradient from the order of the kernels to the shape of the caller.
  Tensor affine_result(const Tensor& gradient) const {
    if (!shape.elementwise) return gradient;
    Tensor result = empty(affine_sizes, x);
    Tensor permuted = view(result, 0, {shape.channels, shape.pixels()}, {shape.pixels(), 1});
    copy(permuted, view(gradient, 0, {shape.channels, shape.pixels()}, {1, shape.channels}));
    return result;
  }

  Tensor activations(const Check& check, const Tensor& given, const char* name,
                     const Ints& sizes) const {
    check.same(given, name, x, "x", sizes);
    return as_channels_last(given);
  }

  Tensor statistics(const Check& check, const Tensor& given, const char* name) const {
    check.same(given, name, x, "x", statistics_sizes);
    return as_contiguous(given);
  }

  Tensor empty_activations(const Ints& sizes) const {
    return empty(sizes, x, std::nullopt, MemoryFormat::ChannelsLast);
  }

  // The workspace for images that several blocks of a CUDA kernel share, or null.
  double* sums() const { return sums_.defined() ? write<double>(sums_) : nullptr; }

  NormActPoolShape shape;
  Ints affine_sizes, statistics_sizes, out_sizes;
  Tensor x;
  OptionalTensor weight, bias;

 private:
  Tensor sums_;
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> norm_act_pool(const Tensor& x, const OptionalTensor& weight,
                                                 const OptionalTensor& bias, int64_t groups,
                                                 bool elementwise, int64_t activation,
                                                 int64_t pooling, double eps) {
  const Arguments a(Check("norm_act_pool"), x, weight, bias, groups, elementwise, activation,
                    pooling, eps);
  const Device device(x);
  Tensor out = a.empty_activations(a.out_sizes);
  Tensor mean = empty(a.statistics_sizes, x), rstd = empty(a.statistics_sizes, x);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    run(NormActPoolForward<T>{a.shape, read<T>(a.x), read<T>(a.weight), read<T>(a.bias),
                              write<T>(out), write<T>(mean), write<T>(rstd), a.sums()},
        device);
  });
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward(
    const Tensor& grad_out, const Tensor& x, const OptionalTensor& weight,
    const OptionalTensor& bias, const Tensor& mean, const Tensor& rstd, int64_t groups,
    bool elementwise, int64_t activation, int64_t pooling, double eps) {
  const Check check("norm_act_pool_backward");
  const Arguments a(check, x, weight, bias, groups, elementwise, activation, pooling, eps);
  const Device device(x);
  const Tensor above = a.activations(check, grad_out, "grad_out", a.out_sizes);
  const Tensor m = a.statistics(check, mean, "mean"), s = a.statistics(check, rstd, "rstd");
  Tensor grad_x = a.empty_activations(sizes_of(x));
  const int64_t affine_size = a.shape.affine_size();
  Tensor grad_weight = empty({affine_size}, x), grad_bias = empty({affine_size}, x);
  const Tensor partial = empty({a.shape.batch, 2, affine_size}, x);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    run(NormActPoolBackward<T>{a.shape, read<T>(a.x), read<T>(a.weight), read<T>(a.bias),
                               read<T>(m), read<T>(s), read<T>(above), write<T>(grad_x),
                               write<T>(partial), write<T>(grad_weight), write<T>(grad_bias),
                               a.sums()},
        device);
  });
  return {grad_x, a.affine_result(grad_weight), a.affine_result(grad_bias)};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_tangent(
    const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
    const Tensor& rstd, const Tensor& x_tangent, const OptionalTensor& weight_tangent,
    const OptionalTensor& bias_tangent, int64_t groups, bool elementwise, int64_t activation,
    int64_t pooling, double eps) {
  const Check check("norm_act_pool_tangent");
  const Arguments a(check, x, weight, bias, groups, elementwise, activation, pooling, eps);
  const Device device(x);
  const Tensor m = a.statistics(check, mean, "mean"), s = a.statistics(check, rstd, "rstd");
  const Tensor xt = a.activations(check, x_tangent, "x_tangent", sizes_of(x));
  const OptionalTensor wt = a.affine(check, weight_tangent, "weight_tangent");
  const OptionalTensor bt = a.affine(check, bias_tangent, "bias_tangent");
  Tensor out_tangent = a.empty_activations(a.out_sizes);
  Tensor mean_tangent = empty(a.statistics_sizes, x), projection = empty(a.statistics_sizes, x);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    run(NormActPoolTangent<T>{a.shape, read<T>(a.x), read<T>(a.weight), read<T>(a.bias), read<T>(m),
                              read<T>(s), read<T>(xt), read<T>(wt), read<T>(bt),
                              write<T>(out_tangent), write<T>(mean_tangent), write<T>(projection),
                              a.sums()},
        device);
  });
  return {out_tangent, mean_tangent, projection};
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward_tangent(
    const Tensor& grad_out, const OptionalTensor& grad_out_tangent, const Tensor& x,
    const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
    const Tensor& rstd, const Tensor& x_tangent, const OptionalTensor& weight_tangent,
    const OptionalTensor& bias_tangent, const Tensor& mean_tangent, const Tensor& projection,
    int64_t groups, bool elementwise, int64_t activation, int64_t pooling, double eps) {
  const Check check("norm_act_pool_backward_tangent");
  const Arguments a(check, x, weight, bias, groups, elementwise, activation, pooling, eps);
  const Device device(x);
  const Tensor above = a.activations(check, grad_out, "grad_out", a.out_sizes);
  OptionalTensor above_tangent;
  if (grad_out_tangent) {
    above_tangent = a.activations(check, *grad_out_tangent, "grad_out_tangent", a.out_sizes);
  }
  const Tensor m = a.statistics(check, mean, "mean"), s = a.statistics(check, rstd, "rstd");
  const Tensor xt = a.activations(check, x_tangent, "x_tangent", sizes_of(x));
  const OptionalTensor wt = a.affine(check, weight_tangent, "weight_tangent");
  const OptionalTensor bt = a.affine(check, bias_tangent, "bias_tangent");
  const Tensor mt = a.statistics(check, mean_tangent, "mean_tangent");
  const Tensor q = a.statistics(check, projection, "projection");
  Tensor grad_x_tangent = a.empty_activations(sizes_of(x));
  const int64_t affine_size = a.shape.affine_size();
  Tensor grad_weight = empty({affine_size}, x), grad_bias = empty({affine_size}, x);
  const Tensor partial = empty({a.shape.batch, 2, affine_size}, x);
  with_dtype(x, [&](auto type) {
    using T = decltype(type);
    run(NormActPoolBackwardTangent<T>{a.shape, read<T>(a.x), read<T>(a.weight), read<T>(a.bias),
                                      read<T>(m), read<T>(s), read<T>(xt), read<T>(wt), read<T>(bt),
                                      read<T>(mt), read<T>(q), read<T>(above),
                                      read<T>(above_tangent), nullptr, write<T>(grad_x_tangent),
                                      write<T>(partial), write<T>(grad_weight), write<T>(grad_bias),
                                      a.sums()},
        device);
  });
  return {grad_x_tangent, a.affine_result(grad_weight), a.affine_result(grad_bias)};
}

}  // namespace trajmatch
