// The optimiser of the steps of an unrolled loop (core/optimiser_step.h), and the vectors that its
// adjoint needs.
#pragma once

#include <vector>

#include "core/network.h"
#include "ops/checks.h"
#include "ops/run.h"

namespace trajmatch {

class InnerOptimiser {
 public:
  // `numbers` are the constants of an optimiser in Python (trajmatch/ops/optimisers.py). `lr` is
  // [], [N, 1], or [N, tensors of the network].
  //
  // `state` is the state before the first step: b [1, P] for SGD, m and v [2, P] for Adam. It is
  // [0, P] for plain SGD: only momentum, starting at zero, with a single step size. The adjoint of
  // plain SGD needs only the theta of each step.
  //
  // If theta is [K, P], the optimiser is plain SGD, lr is [K], and the vectors below are K times as
  // long.
  InnerOptimiser(const Check& check, const Network& network, const Tensor& theta, const Tensor& lr,
                 const Tensor& state, const Doubles& numbers, int64_t steps_done, int64_t steps);

  // Number of vectors that the adjoint needs of each step: theta, then d for SGD (none for plain
  // SGD), or m and v for Adam.
  int64_t vectors() const { return 1 + state_.size(0); }

  // Allocates the state and fills it with the state before the first step. For plain SGD with
  // momentum it is uninitialised, as the first step does not read it.
  Tensor memory() const;

  // Writes theta after this step to `next` and updates the state in `memory`. If `row` is not null,
  // also fills this step's row [vectors, P], except for theta.
  template <class T>
  void step(int64_t step, const VectorPart& theta, const Tensor& grad, const Tensor& memory,
            const VectorPart& next, T* row, const Device& device) const;

  // The adjoints that the sweep over the steps updates, and its results.
  struct Adjoint {
    Tensor theta, r, state;
    Tensor grad_lr;  // [N, columns of lr]
    Tensor partial;  // workspace
    Tensor scale;    // [] or [K], factor of the gradients computed along r
  };
  Adjoint adjoint(const Check& check, const OptionalTensor& grad_state) const;

  // Adds h and the injected gradient to the adjoint of theta, with `left` steps still to go back
  // over; h is hessian_r, times lr for plain SGD. If left > 0, then computes r for step left - 1.
  // `hessian_r` and `inject` may be null (0).
  template <class T>
  void sweep(int64_t left, const Tensor& trajectory, const T* hessian_r, const T* inject,
             const Adjoint& adjoint, const Device& device) const;

  // The gradient of lr. `directional` [N, K] holds the derivative of each step's loss along r.
  Tensor grad_lr(const Adjoint& adjoint, const Tensor& directional) const;

 private:
  bool adam() const { return numbers_.size() == 6; }
  double momentum() const { return numbers_[1]; }
  bool is_plain() const { return state_.size(0) == 0; }
  int64_t columns() const { return static_cast<int64_t>(spans_.size()); }
  template <class T>
  OptimiserRule<T> rule(int64_t step) const;

  Doubles numbers_;
  int64_t size_, trajectories_, steps_done_, steps_;
  Ints sizes_;  // of theta: [P] or [K, P]
  Tensor lr_, state_;
  std::vector<Slice> spans_;  // parts of theta, each with its own step size
};

}  // namespace trajmatch
