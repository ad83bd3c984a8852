// What the student engine differentiates, and along what.
#pragma once

#include <optional>

#include "core/student.h"
#include "ops/torch_api.h"

namespace trajmatch {

// What to differentiate. The batch's tensors: images [B, C, H, W] in channels-last, labels [B] or
// [B, K] (ignored for kSumLogits).
struct StudentProblem {
  VectorPart theta;  // P parameters
  Tensor images, labels;
  StudentLoss loss;
  double scale;  // constant factor of the cross-entropy

  int64_t batch() const { return images.size(0); }
  bool soft_labels() const {
    return loss != StudentLoss::kSumLogits && labels.scalar_type() != ScalarType::Long;
  }
};

// Directions of a directional derivative: those that are absent are zero, but theta's and the
// images' are not both absent.
struct StudentTangents {
  OptionalTensor theta;   // [P], contiguous
  OptionalTensor images;  // [B, C, H, W], channels-last
  OptionalTensor labels;  // [B, K]
};

}  // namespace trajmatch
