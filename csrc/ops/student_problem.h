// The problem that the student engine differentiates, and the tangents of a directional derivative.
#pragma once

#include <optional>

#include "core/student.h"
#include "ops/torch_api.h"

namespace trajmatch {

// The parameters and one batch. Images are [B, C, H, W] in channels-last, or contiguous if the
// operators for one batch run a network with a linear first layer. Labels are [B] or [B, K]; they
// are ignored for kSumLogits.
struct StudentProblem {
  VectorPart theta;  // P parameters
  Tensor images, labels;
  StudentLoss loss;
  double scale;  // constant factor of the loss; not used by kSumLogits

  int64_t batch() const { return images.size(0); }
  bool soft_labels() const {
    return loss != StudentLoss::kSumLogits && labels.scalar_type() != ScalarType::Long;
  }
};

// The tangents of a directional derivative. Absent ones are zero, but at least one of theta and
// images must be present.
struct StudentTangents {
  OptionalTensor theta;   // [P], contiguous
  OptionalTensor images;  // [B, C, H, W], channels-last
  OptionalTensor labels;  // [B, K]
};

}  // namespace trajmatch
