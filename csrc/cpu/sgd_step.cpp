#include "core/sgd_step.h"

#include <algorithm>
#include <cstdint>

namespace trajmatch::cpu {

namespace {

// Calls body(lr, momentum, i) for elements [begin, end) of all trajectories.
template <class T, class Params, class Body>
void each_element(const Params& p, int64_t begin, int64_t end, const Body& body) {
  const T momentum = static_cast<T>(p.momentum);
  while (begin < end) {
    const int64_t trajectory = begin / p.size;
    const int64_t last = std::min(end, (trajectory + 1) * p.size);
    const T lr = p.lr[trajectory];
    for (; begin < last; ++begin) body(lr, momentum, begin);
  }
}

}  // namespace

template <class T>
void sgd_step(const SgdStep<T>& p, int64_t begin, int64_t end) {
  each_element<T>(p, begin, end,
                  [&](T lr, T momentum, int64_t i) { sgd_step_at(p, lr, momentum, i); });
}

template <class T>
void sgd_step_adjoint_partial(const SgdStepAdjoint<T>& p, int64_t begin, int64_t end) {
  const T lr = *p.lr, momentum = static_cast<T>(p.momentum);
  for (int64_t block = begin; block < end; ++block) {
    double product = 0;
    const int64_t first = block_begin(p.size, block), last = block_begin(p.size, block + 1);
    for (int64_t i = first; i < last; ++i) product += sgd_step_adjoint_at(p, lr, momentum, i);
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
  each_element<T>(p, begin, end,
                  [&](T lr, T momentum, int64_t i) { sgd_sweep_at(p, lr, momentum, i); });
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
