// Both primitives as one description: the gradient, and its directional derivative.
#pragma once

#include "core/student.h"

namespace trajmatch::cpu {

template <class T>
struct StudentCall {
  const Network* network;
  StudentBatch<T> batch;
  bool tangent;  // the derivative of the gradient along the tangents is wanted
  const T *theta, *theta_tangent;
  const T *images_tangent, *target_tangent;
  T* loss;                                    // or its derivative
  T *grad_theta, *grad_images, *grad_target;  // or their derivatives
  T* tape;                                    // written by a gradient, read by its derivative

  int64_t parts;
  const InParallel* in_parallel;
  EngineMemory* memory;
};

}  // namespace trajmatch::cpu
