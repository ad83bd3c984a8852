// Activations with their first and second derivatives, shared by all backends.
#pragma once

#include <cmath>

#include "core/macros.h"

namespace trajmatch {

enum class Activation : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kSigmoid = 3 };

// Slope of the leaky ReLU for negative inputs (PyTorch's default).
constexpr double kLeakySlope = 0.01;

// Value, first and second derivative at one point. At 0 the (leaky) ReLU takes its left slope, as
// PyTorch does.
template <class T>
struct ActivationJet {
  T value, first, second;
};

template <Activation kind, class T>
TM_HD inline ActivationJet<T> activation_jet(T z) {
  if constexpr (kind == Activation::kRelu) {
    return {z > T(0) ? z : T(0), z > T(0) ? T(1) : T(0), T(0)};
  } else if constexpr (kind == Activation::kLeakyRelu) {
    const T slope = z > T(0) ? T(1) : T(kLeakySlope);
    return {z * slope, slope, T(0)};
  } else if constexpr (kind == Activation::kSigmoid) {
    const T s = T(1) / (T(1) + std::exp(-z));
    const T first = s * (T(1) - s);
    return {s, first, first * (T(1) - T(2) * s)};
  } else {
    return {z, T(1), T(0)};
  }
}

}  // namespace trajmatch
