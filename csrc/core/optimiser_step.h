// One step of a student's optimiser on its flat parameters [P], as torch.optim does it, and the
// adjoint of that step in an unrolled loop, which runs backwards over the steps. Each is one pass
// over the vectors. SGD with only momentum and a single step size has its own passes
// (core/sgd_step.h).
//
//   gradient:  g = grad + decay * theta                    (decoupled decay: g = grad)
//   SGD:       b = momentum * b + g                        d = b (Nesterov: g + momentum * b)
//   Adam:      m = beta1 * m + (1 - beta1) * g             d = m / c1 / (sqrt(v / c2) + eps)
//              v = beta2 * v + (1 - beta2) * g^2           (decoupled decay: + decay * theta)
//   step:      theta_out = theta - lr * d                  c1 = 1 - beta1^t, c2 = 1 - beta2^t
//
//   sweep: a, p, q and r are the adjoints of theta_out, b or m, v, and g, and h = H r is the
//          Hessian-vector product of the step after this one
//              a += h + inject                             grad_lr = -<a, d>
//   SGD:       p -= lr * a                                 r = p
//   Nesterov:  p -= lr * momentum * a                      r = p - lr * a
//   Adam:      p -= lr * a / (c1 (sqrt(v / c2) + eps))     r = (1-beta1) p + 2 (1-beta2) g q
//              q += lr * a * d / (2 c2 sqrt(v / c2) (sqrt(v / c2) + eps));
//              here d is without decay, and the update is 0 where v is 0
//   then:      p *= momentum or beta1, q *= beta2
//              a += decay * r                              (decoupled decay: a -= lr * decay * a)
//
// The sweep recovers g from two moments, (m_t - beta1 m_{t-1}) / (1 - beta1), so Adam keeps only
// three vectors per step: theta, m and v.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/macros.h"
#include "core/reduction.h"

namespace trajmatch {

// The constants of one step.
template <class T>
struct OptimiserRule {
  bool adam, nesterov, decoupled;
  T first, first_rest;    // momentum and 1; beta1 and 1 - beta1
  T second, second_rest;  // beta2 and 1 - beta2
  T eps, decay;
  T correction1, correction2;  // 1 / c1, 1 / sqrt(c2)
};

template <class T>
struct OptimiserStep {
  OptimiserRule<T> rule;
  int64_t size;    // P
  const T* lr;     // [], on the same device as the vectors
  const T* theta;  // [P]
  const T* grad;   // [P]
  T* theta_out;    // [P], may be theta itself
  T* first;        // [P] b or m, in place
  T* second;       // [P] v, in place; null for SGD
  T* kept;         // [P] d for SGD or m for Adam, read by the sweep; or null if not wanted
  T* kept_second;  // [P] v, or null
};

template <class T>
struct OptimiserSweep {
  OptimiserRule<T> rule;
  int64_t size;           // P
  const T* lr;            // []
  const T* hessian_r;     // [P] h, or null (0)
  const T* inject;        // [P] gradient that enters at theta_out, or null (0)
  const T* theta;         // [P]
  const T* kept;          // [P] d for SGD, m for Adam
  const T* kept_second;   // [P] v; null for SGD
  const T* first_before;  // [P] m before this step; not read for SGD
  T* adjoint;             // [P] a, in place
  T* r;                   // [P]
  T* first_adjoint;       // [P] p, in place
  T* second_adjoint;      // [P] q, in place; null for SGD
  double* partial;        // [kReductionBlocks] workspace
  T* grad_lr;             // []
};

// The step for one element.
template <bool adam, class T>
TM_HD inline void optimiser_step(const OptimiserStep<T>& p, T lr, int64_t i) {
  const OptimiserRule<T>& rule = p.rule;
  const T theta = p.theta[i];
  const T grad = rule.decoupled ? p.grad[i] : p.grad[i] + rule.decay * theta;
  const T first = rule.first * p.first[i] + rule.first_rest * grad;
  p.first[i] = first;
  T direction;
  if constexpr (adam) {
    const T second = rule.second * p.second[i] + rule.second_rest * grad * grad;
    p.second[i] = second;
    if (p.kept != nullptr) {
      p.kept[i] = first;
      p.kept_second[i] = second;
    }
    direction = rule.correction1 * first / (rule.correction2 * std::sqrt(second) + rule.eps);
    if (rule.decoupled) direction += rule.decay * theta;
  } else {
    direction = rule.nesterov ? grad + rule.first * first : first;
    if (p.kept != nullptr) p.kept[i] = direction;
  }
  p.theta_out[i] = theta - lr * direction;
}

// The sweep for one element. Returns its share of <a, d>.
template <bool adam, class T>
TM_HD inline double optimiser_sweep(const OptimiserSweep<T>& p, T lr, int64_t i) {
  const OptimiserRule<T>& rule = p.rule;
  T a = p.adjoint[i];
  if (p.hessian_r != nullptr) a += p.hessian_r[i];
  if (p.inject != nullptr) a += p.inject[i];
  const T kept = p.kept[i];
  T direction = kept, r;
  if constexpr (adam) {
    const T root = std::sqrt(p.kept_second[i]);
    const T factor = rule.correction1 / (rule.correction2 * root + rule.eps);
    const T first = p.first_adjoint[i] - lr * a * factor;
    // Multiply in this order: |m| / sqrt(v) is bounded, the other quotients are not.
    const T ratio = root > 0 ? kept / (root > 0 ? root : T(1)) : T(0);
    const T second = p.second_adjoint[i] +
                     lr * a * factor * ratio * (factor * (rule.correction2 / rule.correction1) / 2);
    direction = kept * factor;
    if (rule.decoupled) direction += rule.decay * p.theta[i];
    const T of_grad = kept - rule.first * p.first_before[i];  // (1 - beta1) g
    r = rule.first_rest * first + 2 * (rule.second_rest / rule.first_rest) * of_grad * second;
    p.first_adjoint[i] = rule.first * first;
    p.second_adjoint[i] = rule.second * second;
  } else {
    const T first = p.first_adjoint[i] - lr * (rule.nesterov ? rule.first * a : a);
    r = rule.nesterov ? first - lr * a : first;
    p.first_adjoint[i] = rule.first * first;
  }
  p.r[i] = r;
  p.adjoint[i] = a + rule.decay * (rule.decoupled ? -lr * a : r);
  return static_cast<double>(a) * direction;
}

namespace cpu {
template <class T>
void optimiser_step(const OptimiserStep<T>& params, int64_t begin, int64_t end);  // elements
// Partial sums [begin, end) of the kReductionBlocks, together with the elements they cover.
template <class T>
void optimiser_sweep_partial(const OptimiserSweep<T>& params, int64_t begin, int64_t end);
template <class T>
void optimiser_sweep_finish(const OptimiserSweep<T>& params);
}  // namespace cpu

namespace cuda {
template <class T>
void launch_optimiser_step(const OptimiserStep<T>& params, Stream stream);
template <class T>
void launch_optimiser_sweep(const OptimiserSweep<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
