// The first block of a student as one operation, for CUDA: 3x3 convolution of few input channels,
// instance norm, ReLU and 2x2 average pooling. Its plane is the largest of the network, so y is
// never stored: every pass makes it again from the images, 9 I multiply-adds a value, which costs
// less than reading it. Float32; activations are channels last.
//
// Letters: K trajectories (students side by side, each with images and parameters of its own),
// B images of each, S input side, I input channels, O = 32 output side, C output channels. The
// convolution's bias moves nothing before an instance norm and is left out.
//
//   y = W * x                  the rest as in core/norm_act_pool.h
//   dW = x * dy                dx = W^T * dy
//   tangent, along parameters only (x' = 0):
//   y' = W' * x                dW' = x * dy'                dx' = W^T * dy' + W'^T * dy
//
// Operations and bytes of an image at I = 3, S = 32, C = 128, with the floor of 100 images on an
// H200 (60 TFLOP/s of float32, 4.3 TB/s):
//   forward            7.1 MFLOP   12 us    0.15 MB    3.4 us
//   tangent           14.2 MFLOP   24 us    0.15 MB    3.4 us
//   backward          14.2 MFLOP   24 us    0.16 MB    3.7 us     + 7.1 MFLOP, 12 us with dx
//   backward tangent  35.4 MFLOP   59 us    0.39 MB    9.1 us
// Stored, y alone would be 0.52 MB for every time it is written or read.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

struct FirstLayerShape {
  static constexpr int64_t kOutSize = 32;
  static constexpr int64_t kPooledSize = kOutSize / 2;
  // Planes of y and y' that a block holds: its channels are 16, or 8 with their tangents.
  static constexpr int64_t kPlanes = 16;

  int64_t trajectories, batch, in_size, in_channels, padding, channels;
  int64_t parameter_stride;  // elements from one trajectory's parameters, tangents or gradients of
                             // parameters to the next one's
  double eps;

  TM_HD int64_t taps() const { return 9 * in_channels; }
  TM_HD int64_t image_size() const { return in_size * in_size * in_channels; }
  TM_HD int64_t pooled_size() const { return kPooledSize * kPooledSize * channels; }
  // Blocks that share an image, with or without tangents.
  TM_HD int64_t tiles(bool tangent) const { return channels / (tangent ? kPlanes / 2 : kPlanes); }
  bool fits() const {
    return in_size + 2 * padding - 2 == kOutSize && padding >= 1 &&
           (in_channels == 1 || in_channels == 3) && channels % kPlanes == 0;
  }
};

// What every pass reads. Parameters: K of each, parameter_stride apart.
struct FirstLayerInputs {
  FirstLayerShape shape;
  const float* images;       // [K, B, S, S, I]
  const float* weight;       // [C, I, 3, 3]
  const float* norm_weight;  // [C]
  const float* norm_bias;    // [C]
};

struct FirstLayerForward {
  FirstLayerInputs in;
  float* out;   // [K, B, O/2, O/2, C]
  float* mean;  // [K, B, C]
  float* rstd;  // [K, B, C]
};

// The tangents of the parameters and the statistics of the forward pass.
struct FirstLayerTangents {
  const float* mean;                 // [K, B, C]
  const float* rstd;                 // [K, B, C]
  const float* weight_tangent;       // [C, I, 3, 3]
  const float* norm_weight_tangent;  // [C]
  const float* norm_bias_tangent;    // [C]
};

struct FirstLayerTangent {
  FirstLayerInputs in;
  FirstLayerTangents tangents;
  float* out_tangent;   // [K, B, O/2, O/2, C]
  float* mean_tangent;  // [K, B, C]
  float* projection;    // [K, B, C]
};

// Where a backward pass leaves its results: shares of images and of tiles, then their sums.
struct FirstLayerGradients {
  float* partial_affine;    // [K, B, 2, C] workspace
  float* partial_weight;    // [K, B, C, I, 3, 3] workspace
  float* partial_images;    // [tiles, K, B, S, S, I] workspace, or null with grad_images
  float* grad_weight;       // [C, I, 3, 3], K of them like the parameters; so the next two
  float* grad_norm_weight;  // [C]
  float* grad_norm_bias;    // [C]
  float* grad_images;       // [K, B, S, S, I], or null: not wanted
};

struct FirstLayerBackward {
  FirstLayerInputs in;
  const float* mean;      // [K, B, C]
  const float* rstd;      // [K, B, C]
  const float* grad_out;  // [K, B, O/2, O/2, C]
  FirstLayerGradients out;
};

// All results are tangents of the backward pass's.
struct FirstLayerBackwardTangent {
  FirstLayerInputs in;
  FirstLayerTangents tangents;
  const float* mean_tangent;      // [K, B, C]
  const float* projection;        // [K, B, C]
  const float* grad_out;          // [K, B, O/2, O/2, C]
  const float* grad_out_tangent;  // [K, B, O/2, O/2, C]
  FirstLayerGradients out;
};

namespace cuda {
// True if the current device has the shared memory that the kernels ask for.
bool first_layer_fits_device(const FirstLayerShape& shape);
void launch_first_layer_forward(const FirstLayerForward& params, Stream stream);
void launch_first_layer_tangent(const FirstLayerTangent& params, Stream stream);
void launch_first_layer_backward(const FirstLayerBackward& params, Stream stream);
void launch_first_layer_backward_tangent(const FirstLayerBackwardTangent& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
