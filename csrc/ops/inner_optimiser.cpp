#include "ops/inner_optimiser.h"

#include <cmath>
#include <string>

#include "ops/student_checks.h"

namespace trajmatch {

namespace {

// The tensors of the network in the flat parameter vector, in order.
std::vector<Slice> tensors_of(const Network& network) {
  std::vector<Slice> result;
  const auto add = [&](const Slice& slice) {
    if (slice.size > 0) result.push_back(slice);
  };
  for (const Node& node : network.nodes) {
    const ConvolutionNode& convolution = node.convolution;
    const NormActPoolNode& norm = node.norm;
    for (const Slice& slice : {convolution.weight, convolution.bias, norm.weight, norm.bias}) {
      add(slice);
    }
  }
  add(network.classifier_weight);
  add(network.classifier_bias);
  return result;
}

template <class T>
T* moved(T* vector, int64_t by) {
  return vector == nullptr ? nullptr : vector + by;
}

}  // namespace

InnerOptimiser::InnerOptimiser(const Check& check, const Network& network, const Tensor& theta,
                               const Tensor& lr, const Tensor& state, const Doubles& numbers,
                               int64_t steps_done, int64_t steps)
    : numbers_(numbers),
      size_(network.num_parameters),
      trajectories_(trajectories_of(theta)),
      steps_done_(steps_done),
      steps_(steps),
      sizes_(sizes_of(theta)),
      lr_(as_contiguous(lr)),
      state_(as_contiguous(state)),
      spans_{{0, size_}} {
  const bool valid = (numbers.size() == 4 && numbers[0] == 0) || (adam() && numbers[0] == 1);
  check.that(valid, "optimiser", "be the numbers of an SGD or Adam",
             std::to_string(numbers.size()) + " numbers");
  check.that(steps_done >= 0, "steps_done", "be at least 0", std::to_string(steps_done));
  // A matrix of step sizes has one row per step, and one column for all parameters or one per
  // tensor.
  const bool several = theta.dim() == 2;
  if (lr.dim() > 0 && !several) {
    check.dim(lr, "lr", 2);
    if (lr.size(1) != 1) spans_ = tensors_of(network);
  }
  check.same(lr, "lr", theta, "theta0",
             several         ? Ints{trajectories_}
             : lr.dim() == 0 ? Ints{}
                             : Ints{steps, columns()});
  check.dim(state, "state", 2);
  // Plain SGD may come without a state. Adam, Nesterov, decay and several step sizes need one.
  const bool general = adam() || numbers[2] != 0 || numbers[3] != 0;
  check.that(!several || !general, "optimiser", "be SGD without Nesterov momentum and decay",
             "another one for parameters [K, P]");
  const bool needs_state = general || (lr.dim() > 0 && !several);
  const int64_t rows = adam() ? 2 : needs_state ? 1 : several ? 0 : state.size(0);
  check.same(state, "state", theta, "theta0", {rows < 1 ? 0 : rows, size_});
}

template <class T>
OptimiserRule<T> InnerOptimiser::rule(int64_t step) const {
  const Doubles& n = numbers_;
  OptimiserRule<T> rule{};
  rule.adam = adam();
  rule.first = static_cast<T>(n[1]);
  if (!rule.adam) {
    rule.nesterov = n[2] != 0;
    rule.decay = static_cast<T>(n[3]);
    rule.first_rest = 1;
    return rule;
  }
  // Adam's bias correction counts all steps of the trajectory, not only those of this call.
  const double count = static_cast<double>(steps_done_ + step + 1);
  rule.first_rest = static_cast<T>(1 - n[1]);
  rule.second = static_cast<T>(n[2]);
  rule.second_rest = static_cast<T>(1 - n[2]);
  rule.eps = static_cast<T>(n[3]);
  rule.decay = static_cast<T>(n[4]);
  rule.decoupled = n[5] != 0;
  rule.correction1 = static_cast<T>(1 / (1 - std::pow(n[1], count)));
  rule.correction2 = static_cast<T>(1 / std::sqrt(1 - std::pow(n[2], count)));
  return rule;
}

Tensor InnerOptimiser::memory() const {
  if (is_plain()) return empty({momentum() == 0 ? 0 : trajectories_ * size_}, lr_);
  Tensor memory = empty(sizes_of(state_), lr_);
  copy(memory, state_);
  return memory;
}

template <class T>
void InnerOptimiser::step(int64_t step, const VectorPart& theta, const Tensor& grad,
                          const Tensor& memory, const VectorPart& next, T* row,
                          const Device& device) const {
  T* const first = write<T>(memory);
  if (is_plain()) {
    // At the first step the buffer counts as zero, so its memory needs no initialisation.
    T* const b = momentum() == 0 ? nullptr : first;
    run(SgdStep<T>{size_, read<T>(theta), read<T>(grad), step == 0 ? nullptr : b, read<T>(lr_),
                   momentum(), write<T>(next), b, trajectories_},
        device);
    return;
  }
  const T* lr = read<T>(lr_) + (lr_.dim() == 0 ? 0 : step * columns());
  T* const second = adam() ? first + size_ : nullptr;
  // The row of the trajectory is theta, then d for SGD or m and v for Adam.
  T* const kept = moved(row, size_);
  T* const kept_second = adam() ? moved(row, 2 * size_) : nullptr;
  for (const Slice& span : spans_) {
    const int64_t at = span.offset;
    run(OptimiserStep<T>{rule<T>(step), span.size, lr++, read<T>(theta) + at, read<T>(grad) + at,
                         write<T>(next) + at, first + at, moved(second, at), moved(kept, at),
                         moved(kept_second, at)},
        device);
  }
}

InnerOptimiser::Adjoint InnerOptimiser::adjoint(const Check& check,
                                                const OptionalTensor& grad_state) const {
  Adjoint result{zeros(sizes_, lr_),
                 zeros(sizes_, lr_),
                 zeros(sizes_of(state_), lr_),
                 empty({steps_, columns()}, lr_),
                 empty({kReductionBlocks}, lr_, ScalarType::Double),
                 lr_};
  if (is_plain()) return result;
  // OptimiserSweep writes r with the step size in it, so the derivatives along r need no factor.
  // For plain SGD r is divided by lr, and `scale` is lr itself.
  result.scale = empty({}, lr_);
  fill(result.scale, 1);
  if (grad_state) {
    check.same(*grad_state, "grad_state", state_, "state");
    copy(result.state, *grad_state);
  }
  return result;
}

template <class T>
void InnerOptimiser::sweep(int64_t left, const Tensor& trajectory, const T* hessian_r,
                           const T* inject, const Adjoint& adjoint, const Device& device) const {
  T *const a = write<T>(adjoint.theta), *const r = write<T>(adjoint.r);
  // Plain SGD has its own pass. At left == 0 no step remains: the same pass, with r null, only adds
  // h and the injected gradient to the adjoint of theta0.
  if (is_plain() || left == 0) {
    run(SgdSweep<T>{size_, read<T>(adjoint.scale), momentum(), hessian_r, inject, a,
                    left > 0 ? r : nullptr, trajectories_},
        device);
    return;
  }
  OptimiserSweep<T> all{};  // pointers to whole vectors; the loop below moves them to each span
  all.rule = rule<T>(left - 1);
  all.size = size_;
  all.hessian_r = hessian_r;
  all.inject = inject;
  all.adjoint = a;
  all.r = r;
  all.partial = write<double>(adjoint.partial);
  const int64_t row = vectors() * size_;
  all.lr = read<T>(lr_) + (lr_.dim() == 0 ? 0 : (left - 1) * columns());
  all.theta = read<T>(trajectory) + (left - 1) * row;
  all.kept = all.theta + size_;
  // m before this step is in the row of the step before, or in the initial state.
  all.first_before = left > 1 ? all.kept - row : read<T>(state_);
  all.first_adjoint = write<T>(adjoint.state);
  all.grad_lr = write<T>(adjoint.grad_lr) + (left - 1) * columns();
  if (adam()) {
    all.kept_second = all.kept + size_;
    all.second_adjoint = all.first_adjoint + size_;
  }
  for (const Slice& span : spans_) {
    OptimiserSweep<T> part = all;
    part.size = span.size;
    for (const T** vector : {&part.hessian_r, &part.inject, &part.theta, &part.kept,
                             &part.kept_second, &part.first_before}) {
      *vector = moved(*vector, span.offset);
    }
    for (T** vector : {&part.adjoint, &part.r, &part.first_adjoint, &part.second_adjoint}) {
      *vector = moved(*vector, span.offset);
    }
    run(part, device);
    ++all.lr;
    ++all.grad_lr;
  }
}

Tensor InnerOptimiser::grad_lr(const Adjoint& adjoint, const Tensor& directional) const {
  if (is_plain()) return lr_.dim() == 0 ? sum_all(directional) : sum_over_rows(directional);
  return lr_.dim() == 0 ? sum_all(adjoint.grad_lr) : adjoint.grad_lr;
}

#define TM_INSTANTIATE(T)                                                                         \
  template void InnerOptimiser::step<T>(int64_t, const VectorPart&, const Tensor&, const Tensor&, \
                                        const VectorPart&, T*, const Device&) const;              \
  template void InnerOptimiser::sweep<T>(int64_t, const Tensor&, const T*, const T*,              \
                                         const Adjoint&, const Device&) const;
TM_INSTANTIATE(float)
TM_INSTANTIATE(double)
#undef TM_INSTANTIATE

}  // namespace trajmatch
