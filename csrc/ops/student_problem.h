// The problem that the student engine differentiates, and the tangents of a directional derivative.
#pragma once

#include <optional>

#include "core/student.h"
#include "ops/torch_api.h"

namespace trajmatch {

// The parameters and one batch of K trajectories: students that are differentiated side by side.
// Images are [K B, C, H, W] in channels-last, or contiguous if the operators for one batch run a
// network with a linear first layer. Labels are [K B] or [K B, classes]; they are ignored for
// kSumLogits.
struct StudentProblem {
  VectorPart theta;  // K P parameters
  Tensor images;
  VectorPart labels;
  StudentLoss loss;
  double scale;              // constant factor of the loss; not used by kSumLogits
  int64_t trajectories = 1;  // K

  bool soft_labels() const {
    return loss != StudentLoss::kSumLogits && labels.base.scalar_type() != ScalarType::Long;
  }
};

// The tangents of a directional derivative. Absent ones are zero, but at least one of theta and
// images must be present.
struct StudentTangents {
  OptionalTensor theta;   // K P, contiguous
  OptionalTensor images;  // [K B, C, H, W], channels-last
  OptionalTensor labels;  // [K B, classes]
};

}  // namespace trajmatch
