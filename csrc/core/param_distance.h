// The normalised squared distance between parameter vectors [P], which is the matching loss of MTT:
//   loss = n / d,   n = |student - target|^2,   d = |start - target|^2
// and its gradient, for an upstream gradient g:
//   grad_student = 2 g (student - target) / d
//   grad_start   = -2 g (n / d) (start - target) / d
//   grad_target  = -(grad_student + grad_start)
// Sums are accumulated in float64.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/reduction.h"

namespace trajmatch {

template <class T>
struct ParamDistance {
  int64_t size;      // P
  const T* student;  // [P]
  const T* target;   // [P]
  const T* start;    // [P]
  double* partial;   // [2, kReductionBlocks] workspace: partial sums of n, then of d
  double* sums;      // [2] n and d
  T* loss;           // []
};

template <class T>
struct ParamDistanceBackward {
  int64_t size;        // P
  const T* student;    // [P]
  const T* target;     // [P]
  const T* start;      // [P]
  const double* sums;  // [2]
  const T* grad_loss;  // []
  T* grad_student;     // [P]; each of these three may be null if not wanted
  T* grad_target;      // [P]
  T* grad_start;       // [P]
};

namespace cpu {
// The first function computes partial sums [begin, end) of the kReductionBlocks, the second the
// loss from all of them.
template <class T>
void param_distance_partial(const ParamDistance<T>& params, int64_t begin, int64_t end);
template <class T>
void param_distance_finish(const ParamDistance<T>& params);
// Elements [begin, end).
template <class T>
void param_distance_backward(const ParamDistanceBackward<T>& params, int64_t begin, int64_t end);
}  // namespace cpu

namespace cuda {
template <class T>
void launch_param_distance(const ParamDistance<T>& params, Stream stream);
template <class T>
void launch_param_distance_backward(const ParamDistanceBackward<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
