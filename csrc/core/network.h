// A student network as a list of nodes, and the offsets of its tensors in the flat parameter
// vector.
#pragma once

#include <cstdint>
#include <vector>

#include "core/norm_act_pool.h"

namespace trajmatch {

// A contiguous range of the flat parameter vector.
struct Slice {
  int64_t offset = 0, size = 0;
};

// A convolution with an optional bias. A linear layer is a convolution whose kernel is as large as
// its input.
struct ConvolutionNode {
  int64_t in_channels, in_size;  // input [B, in_channels, in_size, in_size]
  int64_t channels, size;        // output [B, channels, size, size]
  int64_t kernel, stride, padding;
  Slice weight, bias;  // [C, in_channels, kernel, kernel], [C]
  bool bias_is_inert;  // the next norm subtracts each channel mean, so nothing depends on the bias

  bool is_linear() const { return kernel == in_size && padding == 0; }
};

// Norm, activation and pooling. `groups` in the shape is the number of channel groups, or 0 for no
// norm. weight and bias have one value per channel or, if `elementwise`, one per value of an image.
struct NormActPoolNode {
  NormActPoolShape shape;  // shape of the input, with batch = 0
  Slice weight, bias;      // empty if the norm has none

  NormActPoolShape shape_of(int64_t batch, int64_t trajectories = 1) const {
    NormActPoolShape result = shape;
    result.batch = batch;
    result.trajectories = trajectories;
    return result;
  }
  // True if each channel is centred by its own mean.
  bool centres_channels() const { return shape.groups == shape.channels && !shape.elementwise; }
  // Number of values that each channel mean averages over.
  int64_t values(int64_t batch) const { return (shape.over_batch ? batch : 1) * shape.pixels(); }
};

enum class NodeKind : int { kConvolution = 0, kNormActPool = 1, kAdd = 2, kMean = 3 };

// Value 0 is the images. Node i makes value i + 1 from earlier values.
struct Node {
  NodeKind kind;
  int64_t input, other;    // other: the second addend of kAdd
  int64_t channels, size;  // shape of the value it makes
  ConvolutionNode convolution;
  NormActPoolNode norm;
  int64_t window;  // side of the averaging windows of kMean
};

// Selects the blocks of a chain that run as fused kernels on CUDA, if they fit, and how their
// products are rounded. With kTf32 and kFp16, the forward pass of a precise network uses three TF32
// products instead (ProductKind::kTf32x3).
enum class FusedKernels : int {
  kNone = 0,
  kFirst = 1,  // the first block
  kTf32 = 2,   // all blocks
  kFp16 = 3,   // all blocks, with scaled operands
  kAuto = 4,   // kTf32 for the blocks that gain by it, otherwise kFirst
};

// A convolution and the norm, activation and pooling after it.
struct Block {
  ConvolutionNode convolution;
  NormActPoolNode norm;
};

struct Network {
  int64_t in_channels, num_classes, image_size;
  std::vector<Node> nodes;
  // The same nodes as pairs, if the network is a chain of 3x3 convolutions with stride 1 and
  // padding 1 (at least 1 for the first), each with a bias and followed by a norm, activation and
  // pooling of single images. Empty otherwise. The specialised kernels only run such chains.
  std::vector<Block> blocks;
  int64_t width, feature_pixels, features;   // channels, pixels and values read by the classifier
  Slice classifier_weight, classifier_bias;  // [K, features] in the order (C, H, W), [K]
  int64_t num_parameters;
  int64_t batch_norm_channels;  // sum over all batch norms
  bool precise;                 // avoids transforms in the engine that cost accuracy
  FusedKernels fused;
};

}  // namespace trajmatch
