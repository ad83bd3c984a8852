#include "core/optimiser_step.h"

#include <cstdint>

namespace trajmatch::cpu {

namespace {

template <bool adam, class T>
void steps(const OptimiserStep<T> p, int64_t begin, int64_t end) {
  const T lr = *p.lr;
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) trajmatch::optimiser_step<adam>(p, lr, i);
}

template <bool adam, class T>
double sweep(const OptimiserSweep<T> p, int64_t begin, int64_t end) {
  const T lr = *p.lr;
  double product = 0;
#pragma omp simd reduction(+ : product)
  for (int64_t i = begin; i < end; ++i) product += trajmatch::optimiser_sweep<adam>(p, lr, i);
  return product;
}

}  // namespace

template <class T>
void optimiser_step(const OptimiserStep<T>& p, int64_t begin, int64_t end) {
  p.rule.adam ? steps<true>(p, begin, end) : steps<false>(p, begin, end);
}

template <class T>
void optimiser_sweep_partial(const OptimiserSweep<T>& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block_begin(p.size, block), last = block_begin(p.size, block + 1);
    p.partial[block] = p.rule.adam ? sweep<true>(p, first, last) : sweep<false>(p, first, last);
  }
}

template <class T>
void optimiser_sweep_finish(const OptimiserSweep<T>& p) {
  double product = 0;
  for (int64_t block = 0; block < kReductionBlocks; ++block) product += p.partial[block];
  *p.grad_lr = static_cast<T>(-product);
}

template void optimiser_step(const OptimiserStep<float>&, int64_t, int64_t);
template void optimiser_step(const OptimiserStep<double>&, int64_t, int64_t);
template void optimiser_sweep_partial(const OptimiserSweep<float>&, int64_t, int64_t);
template void optimiser_sweep_partial(const OptimiserSweep<double>&, int64_t, int64_t);
template void optimiser_sweep_finish(const OptimiserSweep<float>&);
template void optimiser_sweep_finish(const OptimiserSweep<double>&);

}  // namespace trajmatch::cpu
