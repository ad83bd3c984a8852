// One SGD step of a student on its flat parameters [P], and two forms of its adjoint. Each is one
// pass over the vectors.
//
//   step:      b = momentum * buffer + grad          theta_out = theta - lr * b
//   adjoint, from a = d/dtheta_out and c = d/db:
//              grad_grad = c - lr a    grad_buffer = momentum * grad_grad    grad_lr = -<a, b>
//   sweep, the same adjoint inside an unrolled loop, running backwards over the steps; r is the
//   adjoint of b divided by lr, h = H r is the Hessian-vector product of the step after this one:
//              adjoint += lr * h + inject            r = momentum * r - adjoint
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
  const T* lr;      // [], on the same device as the vectors
  double momentum;
  T* theta_out;   // [P], may be theta itself
  T* buffer_out;  // [P], may be buffer itself, or null if not wanted
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
  const T* lr;   // []
  double momentum;
  const T* hessian_r;  // [P] h, or null (0)
  const T* inject;     // [P] gradient that enters at this step, or null (0)
  T* adjoint;          // [P] updated in place
  T* r;                // [P] updated in place, or null if only the adjoint is wanted
};

namespace cpu {
template <class T>
void sgd_step(const SgdStep<T>& params, int64_t begin, int64_t end);  // elements
// Partial sums [begin, end) of the kReductionBlocks, together with the elements they cover.
template <class T>
void sgd_step_adjoint_partial(const SgdStepAdjoint<T>& params, int64_t begin, int64_t end);
template <class T>
void sgd_step_adjoint_finish(const SgdStepAdjoint<T>& params);
template <class T>
void sgd_sweep(const SgdSweep<T>& params, int64_t begin, int64_t end);  // elements
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
