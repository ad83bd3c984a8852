#include "core/sgd_step.h"

#include <cstdint>

namespace trajmatch::cpu {

template <class T>
void sgd_step(const SgdStep<T>& p, int64_t begin, int64_t end) {
  const T lr = *p.lr, momentum = static_cast<T>(p.momentum);
  for (int64_t i = begin; i < end; ++i) {
    const T buffer = p.buffer == nullptr ? p.grad[i] : momentum * p.buffer[i] + p.grad[i];
    p.theta_out[i] = p.theta[i] - lr * buffer;
    if (p.buffer_out != nullptr) p.buffer_out[i] = buffer;
  }
}

template <class T>
void sgd_step_adjoint_partial(const SgdStepAdjoint<T>& p, int64_t begin, int64_t end) {
  const T lr = *p.lr, momentum = static_cast<T>(p.momentum);
  for (int64_t block = begin; block < end; ++block) {
    double product = 0;
    const int64_t first = block_begin(p.size, block), last = block_begin(p.size, block + 1);
    for (int64_t i = first; i < last; ++i) {
      const T from_theta = p.grad_theta_out[i];
      const T from_buffer = p.grad_buffer_out == nullptr ? T(0) : p.grad_buffer_out[i];
      const T grad = from_buffer - lr * from_theta;
      product += static_cast<double>(from_theta) * p.buffer_out[i];
      p.grad_grad[i] = grad;
      if (p.grad_buffer != nullptr) p.grad_buffer[i] = momentum * grad;
    }
    p.partial[block] = product;
  }
}

template <class T>
void sgd_step_adjoint_finish(const SgdStepAdjoint<T>& p) {
  double product = 0;
  for (int64_t block = 0; block < kReductionBlocks; ++block) product += p.partial[block];
  *p.grad_lr = static_cast<T>(-product);
}

template <class T>
void sgd_sweep(const SgdSweep<T>& p, int64_t begin, int64_t end) {
  const T lr = *p.lr, momentum = static_cast<T>(p.momentum);
  for (int64_t i = begin; i < end; ++i) {
    T adjoint = p.adjoint[i];
    if (p.hessian_r != nullptr) adjoint += lr * p.hessian_r[i];
    if (p.inject != nullptr) adjoint += p.inject[i];
    p.adjoint[i] = adjoint;
    if (p.r != nullptr) p.r[i] = momentum * p.r[i] - adjoint;
  }
}

template void sgd_step(const SgdStep<float>&, int64_t, int64_t);
template void sgd_step(const SgdStep<double>&, int64_t, int64_t);
template void sgd_step_adjoint_partial(const SgdStepAdjoint<float>&, int64_t, int64_t);
template void sgd_step_adjoint_partial(const SgdStepAdjoint<double>&, int64_t, int64_t);
template void sgd_step_adjoint_finish(const SgdStepAdjoint<float>&);
template void sgd_step_adjoint_finish(const SgdStepAdjoint<double>&);
template void sgd_sweep(const SgdSweep<float>&, int64_t, int64_t);
template void sgd_sweep(const SgdSweep<double>&, int64_t, int64_t);

}  // namespace trajmatch::cpu
