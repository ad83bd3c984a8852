// One SGD step of a student on its flat parameters [P], and two forms of its adjoint. Each is one
// pass over the vectors.
//
//   step:      b = momentum * buffer + grad          theta_out = theta - lr * b
//   adjoint, from a = d/dtheta_out and c = d/db:
//              grad_grad = c - lr a    grad_buffer = momentum * grad_grad    grad_lr = -<a, b>
//   sweep, the same adjoint inside an unrolled loop, running backwards over the steps; r is the
//   adjoint of b divided by lr, h = H r is the Hessian-vector product of the step after this one:
//              adjoint += lr * h + inject            r = momentum * r - adjoint
// The step and the sweep take K trajectories (students trained side by side) at once: all vectors
// are then [K, P], and each trajectory has a step size of its own.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/reduction.h"

namespace trajmatch {

template <class T>
struct SgdStep {
  int64_t size;     // P
  const T* theta;   // [P]
  const T* grad;    // [P]
  const T* buffer;  // [P], or null (0)
  const T* lr;      // [], or [K] for [K, P]; on the same device as the vectors
  double momentum;
  T* theta_out;   // [P], may be theta itself
  T* buffer_out;  // [P], may be buffer itself, or null if not wanted
  int64_t trajectories = 1;
};

template <class T>
struct SgdStepAdjoint {
  int64_t size;              // P
  const T* grad_theta_out;   // [P]
  const T* grad_buffer_out;  // [P], or null (0)
  const T* buffer_out;       // [P] b
  const T* lr;               // []
  double momentum;
  T* grad_grad;     // [P]
  T* grad_buffer;   // [P], or null if not wanted
  double* partial;  // [kReductionBlocks] workspace
  T* grad_lr;       // []
};

template <class T>
struct SgdSweep {
  int64_t size;  // P
  const T* lr;   // [], or [K] for [K, P]
  double momentum;
  const T* hessian_r;  // [P] h, or null (0)
  const T* inject;     // [P] gradient that enters at this step, or null (0)
  T* adjoint;          // [P] updated in place
  T* r;                // [P] updated in place, or null if only the adjoint is wanted
  int64_t trajectories = 1;
};

// The step, its adjoint and the sweep for element i. The adjoint returns its share of <a, b>.
template <class T>
TM_HD inline void sgd_step_at(const SgdStep<T>& p, T lr, T momentum, int64_t i) {
  const T buffer = p.buffer == nullptr ? p.grad[i] : momentum * p.buffer[i] + p.grad[i];
  p.theta_out[i] = p.theta[i] - lr * buffer;
  if (p.buffer_out != nullptr) p.buffer_out[i] = buffer;
}
template <class T>
TM_HD inline double sgd_step_adjoint_at(const SgdStepAdjoint<T>& p, T lr, T momentum, int64_t i) {
  const T from_theta = p.grad_theta_out[i];
  const T from_buffer = p.grad_buffer_out == nullptr ? T(0) : p.grad_buffer_out[i];
  const T grad = from_buffer - lr * from_theta;
  p.grad_grad[i] = grad;
  if (p.grad_buffer != nullptr) p.grad_buffer[i] = momentum * grad;
  return static_cast<double>(from_theta) * p.buffer_out[i];
}
template <class T>
TM_HD inline void sgd_sweep_at(const SgdSweep<T>& p, T lr, T momentum, int64_t i) {
  T adjoint = p.adjoint[i];
  if (p.hessian_r != nullptr) adjoint += lr * p.hessian_r[i];
  if (p.inject != nullptr) adjoint += p.inject[i];
  p.adjoint[i] = adjoint;
  if (p.r != nullptr) p.r[i] = momentum * p.r[i] - adjoint;
}

namespace cpu {
template <class T>
void sgd_step(const SgdStep<T>& params, int64_t begin,
              int64_t end);  // elements of all trajectories
// Partial sums [begin, end) of the kReductionBlocks, together with the elements they cover.
template <class T>
void sgd_step_adjoint_partial(const SgdStepAdjoint<T>& params, int64_t begin, int64_t end);
template <class T>
void sgd_step_adjoint_finish(const SgdStepAdjoint<T>& params);
template <class T>
void sgd_sweep(const SgdSweep<T>& params, int64_t begin,
               int64_t end);  // elements of all trajectories
}  // namespace cpu

namespace cuda {
template <class T>
void launch_sgd_step(const SgdStep<T>& params, Stream stream);
template <class T>
void launch_sgd_step_adjoint(const SgdStepAdjoint<T>& params, Stream stream);
template <class T>
void launch_sgd_sweep(const SgdSweep<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
