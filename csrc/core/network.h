// A student network as sizes and as places in its flat parameters: blocks one after the other, and
// a linear layer. Each of its norms looks at one image alone, so images do not meet before the
// loss, a mean.
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

// One block: convolution, norm, activation, pooling. A linear layer is a convolution whose kernel
// is as large as its input; a kernel of 0 is no convolution.
struct Block {
  int64_t in_channels, in_size;  // input [B, in_channels, in_size, in_size]
  int64_t kernel, stride, padding;
  Norm norm;
  NormActPoolShape shape;        // of the convolution's output, for a batch of 0
  Slice weight, bias;            // [C, in_channels, kernel, kernel], [C]
  Slice norm_weight, norm_bias;  // [C], or [C, H, W] for layer norm; empty without norm

  // A bias before an instance norm moves nothing: its gradient is exactly zero.
  bool bias_is_inert() const { return norm == Norm::kInstance; }
  bool convolves() const { return kernel > 0; }
  bool is_linear() const { return kernel == in_size && padding == 0; }

  NormActPoolShape shape_of(int64_t batch) const {
    NormActPoolShape result = shape;
    result.batch = batch;
    return result;
  }
};

struct Network {
  int64_t in_channels, num_classes, image_size;
  std::vector<Block> blocks;
  // Whether it is trajmatch.networks.ConvNet: all convolutions are 3x3 with stride 1 and a padding
  // of 1 (the first of at least 1), and all blocks alike. The kernels made for it need that.
  bool is_convnet;
  int64_t width;                     // channels of the last block; of a ConvNet of every block
  Norm norm;                         // of the last block; of a ConvNet of every block
  int64_t feature_pixels, features;  // pixels and values that the classifier reads of an image
  Slice classifier_weight, classifier_bias;  // [K, features] in the order (C, H, W), [K]
  int64_t num_parameters;
  bool precise;  // no transform of the engine's that costs accuracy
};

}  // namespace trajmatch
