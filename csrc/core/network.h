// A student network as nodes, each of which makes one value of others, and as places in its flat
// parameters.
#pragma once

#include <cstdint>
#include <vector>

#include "core/norm_act_pool.h"

namespace trajmatch {

// A run of the flat parameter vector.
struct Slice {
  int64_t offset = 0, size = 0;
};

// A convolution, with its bias where it has one. A linear layer is one whose kernel is as large as
// its input.
struct ConvolutionNode {
  int64_t in_channels, in_size;  // input [B, in_channels, in_size, in_size]
  int64_t channels, size;        // output [B, channels, size, size]
  int64_t kernel, stride, padding;
  Slice weight, bias;  // [C, in_channels, kernel, kernel], [C]
  bool bias_is_inert;  // nothing depends on it, since a norm takes the mean of each channel away

  bool is_linear() const { return kernel == in_size && padding == 0; }
};

// Norm, activation and pooling. The norm is described by numbers: `groups` of channels, or none;
// weight and bias for each channel or, where `elementwise`, for each value of an image.
struct NormActPoolNode {
  NormActPoolShape shape;  // of the input, for a batch of 0
  Slice weight, bias;      // empty where the norm has none

  NormActPoolShape shape_of(int64_t batch) const {
    NormActPoolShape result = shape;
    result.batch = batch;
    return result;
  }
  // True if each channel has a mean of its own.
  bool centres_channels() const { return shape.groups == shape.channels && !shape.elementwise; }
  // Values that a channel's mean is over.
  int64_t values(int64_t batch) const { return (shape.over_batch ? batch : 1) * shape.pixels(); }
};

enum class NodeKind : int { kConvolution = 0, kNormActPool = 1, kAdd = 2, kMean = 3 };

// Value 0 is the images, and node i makes value i + 1, of values before it.
struct Node {
  NodeKind kind;
  int64_t input, other;    // other: the second addend
  int64_t channels, size;  // of its value
  ConvolutionNode convolution;
  NormActPoolNode norm;
  int64_t window;  // side of the pixels that a mean is over
};

// Blocks of a chain that run as kernels of their own on CUDA, of those that fit, and how their
// products are rounded. The forward pass of a precise network rounds with kTf32 and kFp16 to three
// products in TF32.
enum class FusedKernels : int {
  kNone = 0,
  kFirst = 1,    // the first block
  kFloat32 = 2,  // all
  kTf32 = 3,     // all
  kFp16 = 4,     // all, of scaled operands
};

// A convolution and what follows it.
struct Block {
  ConvolutionNode convolution;
  NormActPoolNode norm;
};

struct Network {
  int64_t in_channels, num_classes, image_size;
  std::vector<Node> nodes;
  // The same of a chain of 3x3 convolutions with stride 1 and a padding of 1 (the first of at least
  // 1), each with a bias and a norm, activation and pooling of single images behind it; otherwise
  // empty. The kernels made for such networks need that.
  std::vector<Block> blocks;
  int64_t width, feature_pixels, features;  // channels, pixels and values that the classifier reads
  Slice classifier_weight, classifier_bias;  // [K, features] in the order (C, H, W), [K]
  int64_t num_parameters;
  int64_t batch_norm_channels;  // of all norms over the batch
  bool precise;                 // no transform of the engine's that costs accuracy
  FusedKernels fused;
};

}  // namespace trajmatch
