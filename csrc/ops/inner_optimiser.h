// The optimiser of an unrolled loop's steps (core/optimiser_step.h), and what it keeps of them.
#pragma once

#include <vector>

#include "core/network.h"
#include "ops/checks.h"
#include "ops/run.h"

namespace trajmatch {

class InnerOptimiser {
 public:
  // `numbers` are those of an optimiser in Python (trajmatch/ops/optimisers.py), `lr` is [], or
  // [N, 1], or [N, tensors of the network]. `state` is that before the first step: b [1, P] for
  // SGD, m and v [2, P] for Adam; or [0, P] for SGD with nothing but momentum, that starts at zero,
  // at one step size, whose adjoint needs no more than each step's theta.
  InnerOptimiser(const Check& check, const Network& network, const Tensor& theta, const Tensor& lr,
                 const Tensor& state, const Doubles& numbers, int64_t steps_done, int64_t steps);

  // Vectors that the adjoint needs of a step: theta; the step's direction (SGD), or m and v (Adam).
  int64_t vectors() const { return 1 + state_.size(0); }

  // Memory for the state, as it is before the first step.
  Tensor memory() const;

  // Writes theta after this step, updates the state, and fills the row [vectors, P] of this step
  // but for theta, where one is kept.
  template <class T>
  void step(int64_t step, const VectorPart& theta, const Tensor& grad, const Tensor& memory,
            const VectorPart& next, T* row, const Device& device) const;

  // The adjoints that the sweep over the steps carries, and its results.
  struct Adjoint {
    Tensor theta, r, state;
    Tensor grad_lr;  // [N, columns of lr]
    Tensor partial;  // workspace
    Tensor scale;    // [], factor of the derivatives along r
  };
  Adjoint adjoint(const Check& check, const OptionalTensor& grad_state) const;

  // With so many steps left: theta += h + inject, then r for the last of them.
  template <class T>
  void sweep(int64_t left, const Tensor& trajectory, const T* hessian_r, const T* inject,
             const Adjoint& adjoint, const Device& device) const;

  // The gradient of lr; `directional` [N] are the losses' derivatives along r.
  Tensor grad_lr(const Adjoint& adjoint, const Tensor& directional) const;

 private:
  bool adam() const { return numbers_.size() == 6; }
  double momentum() const { return numbers_[1]; }
  bool is_plain() const { return state_.size(0) == 0; }
  int64_t columns() const { return static_cast<int64_t>(spans_.size()); }
  template <class T>
  OptimiserRule<T> rule(int64_t step) const;

  Doubles numbers_;
  int64_t size_, steps_done_, steps_;
  Tensor lr_, state_;
  std::vector<Slice> spans_;  // parts of theta with a step size of their own
};

}  // namespace trajmatch
