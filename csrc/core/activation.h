// Activation functions with their first and second derivatives, shared by all backends.
#pragma once

#include <cmath>

#include "core/macros.h"

namespace trajmatch {

enum class Activation : int { kNone = 0, kRelu = 1, kLeakyRelu = 2, kSigmoid = 3 };

// Slope of the leaky ReLU for negative inputs (PyTorch's default).
constexpr double kLeakySlope = 0.01;

#include "core/activation_formulas.h"

}  // namespace trajmatch
