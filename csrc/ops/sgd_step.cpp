#include "core/sgd_step.h"

#include "ops/checks.h"
#include "ops/operators.h"
#include "ops/run.h"

namespace trajmatch {

std::tuple<Tensor, Tensor> sgd_step(const Tensor& theta, const Tensor& grad, const Tensor& lr,
                                    const OptionalTensor& buffer, double momentum) {
  const Check check("sgd_step");
  check.floating(theta, "theta");
  check.dim(theta, "theta", 1);
  check.same(grad, "grad", theta, "theta");
  check.same(lr, "lr", theta, "theta", {});
  if (buffer) check.same(*buffer, "buffer", theta, "theta");

  const Device device(theta);
  const Tensor t = as_contiguous(theta), g = as_contiguous(grad);
  const OptionalTensor b = as_contiguous(buffer);
  Tensor theta_out = empty(sizes_of(theta), theta), buffer_out = empty(sizes_of(theta), theta);
  with_dtype(theta, [&](auto type) {
    using T = decltype(type);
    run(SgdStep<T>{theta.numel(), read<T>(t), read<T>(g), read<T>(b), read<T>(lr), momentum,
                   write<T>(theta_out), write<T>(buffer_out)},
        device);
  });
  return {theta_out, buffer_out};
}

std::tuple<Tensor, Tensor, Tensor> sgd_step_adjoint(const Tensor& grad_theta_out,
                                                    const OptionalTensor& grad_buffer_out,
                                                    const Tensor& buffer_out, const Tensor& lr,
                                                    double momentum) {
  const Check check("sgd_step_adjoint");
  check.floating(grad_theta_out, "grad_theta_out");
  check.dim(grad_theta_out, "grad_theta_out", 1);
  check.same(buffer_out, "buffer_out", grad_theta_out, "grad_theta_out");
  check.same(lr, "lr", grad_theta_out, "grad_theta_out", {});
  if (grad_buffer_out) {
    check.same(*grad_buffer_out, "grad_buffer_out", grad_theta_out, "grad_theta_out");
  }

  const Device device(grad_theta_out);
  const Tensor a = as_contiguous(grad_theta_out), b = as_contiguous(buffer_out);
  const OptionalTensor c = as_contiguous(grad_buffer_out);
  const Ints sizes = sizes_of(grad_theta_out);
  Tensor grad_grad = empty(sizes, a), grad_buffer = empty(sizes, a), grad_lr = empty({}, a);
  const Tensor partial = empty({kReductionBlocks}, a, ScalarType::Double);
  with_dtype(a, [&](auto type) {
    using T = decltype(type);
    run(SgdStepAdjoint<T>{a.numel(), read<T>(a), read<T>(c), read<T>(b), read<T>(lr), momentum,
                          write<T>(grad_grad), write<T>(grad_buffer), write<double>(partial),
                          write<T>(grad_lr)},
        device);
  });
  return {grad_grad, grad_buffer, grad_lr};
}

}  // namespace trajmatch
