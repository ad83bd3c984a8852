#include "core/param_distance.h"

#include <cstdint>

namespace trajmatch::cpu {

template <class T>
void param_distance_partial(const ParamDistance<T>& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    double numerator = 0, denominator = 0;
    const int64_t first = block_begin(p.size, block), last = block_begin(p.size, block + 1);
#pragma omp simd reduction(+ : numerator, denominator)
    for (int64_t i = first; i < last; ++i) {
      const double from_student = static_cast<double>(p.student[i]) - p.target[i];
      const double from_start = static_cast<double>(p.start[i]) - p.target[i];
      numerator += from_student * from_student;
      denominator += from_start * from_start;
    }
    p.partial[block] = numerator;
    p.partial[kReductionBlocks + block] = denominator;
  }
}

template <class T>
void param_distance_finish(const ParamDistance<T>& p) {
  double numerator = 0, denominator = 0;
  for (int64_t block = 0; block < kReductionBlocks; ++block) {
    numerator += p.partial[block];
    denominator += p.partial[kReductionBlocks + block];
  }
  p.sums[0] = numerator;
  p.sums[1] = denominator;
  *p.loss = static_cast<T>(numerator / denominator);
}

template <class T>
void param_distance_backward(const ParamDistanceBackward<T>& p, int64_t begin, int64_t end) {
  // The loss is sums[0] / sums[1]; start_factor is the derivative through the denominator.
  const double student_factor = 2.0 * *p.grad_loss / p.sums[1];
  const double start_factor = -student_factor * (p.sums[0] / p.sums[1]);
  for (int64_t i = begin; i < end; ++i) {
    const double target = p.target[i];
    const double from_student = student_factor * (p.student[i] - target);
    const double from_start = start_factor * (p.start[i] - target);
    if (p.grad_student != nullptr) p.grad_student[i] = static_cast<T>(from_student);
    if (p.grad_start != nullptr) p.grad_start[i] = static_cast<T>(from_start);
    if (p.grad_target != nullptr) p.grad_target[i] = static_cast<T>(-(from_student + from_start));
  }
}

template void param_distance_partial(const ParamDistance<float>&, int64_t, int64_t);
template void param_distance_partial(const ParamDistance<double>&, int64_t, int64_t);
template void param_distance_finish(const ParamDistance<float>&);
template void param_distance_finish(const ParamDistance<double>&);
template void param_distance_backward(const ParamDistanceBackward<float>&, int64_t, int64_t);
template void param_distance_backward(const ParamDistanceBackward<double>&, int64_t, int64_t);

}  // namespace trajmatch::cpu
