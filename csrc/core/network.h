// The student network (trajmatch.networks.ConvNet) as sizes and as places in its flat parameters.
// Each of its norms looks at one image alone, so images do not meet before the loss, a mean.
#pragma once

#include <cstdint>
#include <vector>

#include "core/norm_act_pool.h"

namespace trajmatch {

enum class Norm : int { kNone = 0, kInstance = 1, kGroup = 2, kLayer = 3 };

// A run of the flat parameter vector.
struct Slice {
  int64_t offset = 0, size = 0;
};

// One block: convolution, norm, activation, pooling.
struct Block {
  int64_t in_channels, in_size;  // input [B, in_channels, in_size, in_size]
  int64_t padding;
  NormActPoolShape shape;        // of the convolution's output, for a batch of 0
  Slice weight, bias;            // [C, in_channels, 3, 3], [C]
  Slice norm_weight, norm_bias;  // [C], or [C, H, W] for layer norm; empty without norm

  NormActPoolShape shape_of(int64_t batch) const {
    NormActPoolShape result = shape;
    result.batch = batch;
    return result;
  }
};

struct Network {
  // A convolution bias before an instance norm moves nothing: its gradient is exactly zero.
  bool bias_is_inert() const { return norm == Norm::kInstance; }

  int64_t in_channels, num_classes, image_size, width;
  Norm norm;
  std::vector<Block> blocks;
  int64_t feature_pixels, features;  // pixels and values that the classifier reads of an image
  Slice classifier_weight, classifier_bias;  // [K, features] in the order (C, H, W), [K]
  int64_t num_parameters;
  bool precise;  // no transform of the engine's that costs accuracy
};

}  // namespace trajmatch
