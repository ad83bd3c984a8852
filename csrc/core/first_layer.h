// The first block of a student as one operation on CUDA: a 3x3 convolution with few input channels,
// instance norm, ReLU and 2x2 average pooling. Its plane is the largest in the network, so the
// convolution output y is never stored. Every pass recomputes y from the images: 9 I multiply-adds
// per value cost less than reading it. Float32; activations are channels-last. The products run on
// tensor cores, each as three products of TF32 numbers, which keeps the accuracy of float32.
//
// A thread block computes 32 x 32 pixels of y, a square. Where a plane has several squares, each
// pass takes two launches: the first computes the sums over each square, the second adds them up
// and computes the rest. Both compute y.
//
// Letters: K trajectories (students trained side by side, each with its own images and parameters),
// B images per trajectory, S input side, I input channels, O output side, Q = (O / 32)^2 squares of
// a plane, C output channels. The bias of the convolution has no effect before an instance norm and
// is left out.
//
//   y = W * x                  the rest as in core/norm_act_pool.h
//   dW = x * dy                dx = W^T * dy
//   tangent along the parameters only (x' = 0):
//   y' = W' * x                dW' = x * dy'                dx' = W^T * dy' + W'^T * dy
//
// Operations and bytes per image at I = 3, S = 32, C = 128, and the lower bound in time for 100
// images on an H200 (60 TFLOP/s of float32 without tensor cores, 4.3 TB/s):
//   forward            7.1 MFLOP   12 us    0.15 MB    3.4 us
//   tangent           14.2 MFLOP   24 us    0.15 MB    3.4 us
//   backward          14.2 MFLOP   24 us    0.16 MB    3.7 us     + 7.1 MFLOP, 12 us with dx
//   backward tangent  35.4 MFLOP   59 us    0.39 MB    9.1 us
// If a plane has several squares, y and y' are computed twice.
// If y were stored, each write or read of y alone would move 0.52 MB.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/share_sums.h"

namespace trajmatch {

struct FirstLayerShape {
  static constexpr int64_t kSquareSize = 32;
  // Side of the part of the image that the gradient of a square reaches.
  static constexpr int64_t kBorderedSize = kSquareSize + 2;
  // Planes of y and y' that a thread block holds: 16 channels, or 8 channels with their tangents.
  static constexpr int64_t kPlanes = 16;

  int64_t trajectories, batch, in_size, in_channels, padding, channels;
  int64_t parameter_stride;  // elements between the parameters of one trajectory and the next; the
                             // same for tangents and parameter gradients
  double eps;

  TM_HD int64_t taps() const { return 9 * in_channels; }
  TM_HD int64_t image_size() const { return in_size * in_size * in_channels; }
  TM_HD int64_t out_size() const { return in_size + 2 * padding - 2; }
  TM_HD int64_t squares() const { return (out_size() / kSquareSize) * (out_size() / kSquareSize); }
  TM_HD int64_t pooled_size() const { return out_size() * out_size() / 4 * channels; }
  // Thread blocks per square, with or without tangents.
  TM_HD int64_t tiles(bool tangent) const { return channels / (tangent ? kPlanes / 2 : kPlanes); }
  // Elements of one share of the image gradient: an image or, if a plane has several squares, the
  // overlapping parts that they reach.
  TM_HD int64_t image_share() const {
    return squares() == 1 ? image_size() : squares() * kBorderedSize * kBorderedSize * in_channels;
  }
  bool fits() const {
    return out_size() >= kSquareSize && out_size() % kSquareSize == 0 && padding >= 1 &&
           (in_channels == 1 || in_channels == 3) && channels % kPlanes == 0;
  }
};

// The inputs of every pass. There are K sets of parameters, parameter_stride apart.
struct FirstLayerInputs {
  FirstLayerShape shape;
  const float* images;       // [K, B, S, S, I]
  const float* weight;       // [C, I, 3, 3]
  const float* norm_weight;  // [C]
  const float* norm_bias;    // [C]
  float* sums;               // workspace [K, B, Q, 4, C] for sums over squares; unused if Q is 1
};

struct FirstLayerForward {
  FirstLayerInputs in;
  float* out;   // [K, B, O/2, O/2, C]
  float* mean;  // [K, B, C]
  float* rstd;  // [K, B, C]
  bool rounds;  // round out to TF32
};

// The statistics of the forward pass and the tangents of the parameters.
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
  bool rounds;          // round out_tangent to TF32
};

// The outputs of a backward pass: shares of the gradients, by image, square or tile.
struct FirstLayerShares {
  float* affine;  // [K, B, 2, C]
  float* weight;  // [K, B, Q, C, I, 3, 3]
  float* images;  // [tiles, K, B, S, S, I] or [tiles, K, B, Q, 34, 34, I], or null if not wanted

  // How the shares add up to the gradients of norm weights and biases, weights and, if a plane is
  // one square, images.
  ShareSum<float> sum_affine(const FirstLayerShape& shape, int64_t which, float* to) const {
    const int64_t c = shape.channels, row = 2 * c;
    return {affine + which * c, to, shape.batch, row, c, shape.batch * row, shape.parameter_stride};
  }
  ShareSum<float> sum_weight(const FirstLayerShape& shape, float* to) const {
    const int64_t size = shape.channels * shape.taps(), rows = shape.batch * shape.squares();
    return {weight, to, rows, size, size, rows * size, shape.parameter_stride};
  }
  ShareSum<float> sum_images(const FirstLayerShape& shape, bool tangent, float* to) const {
    const int64_t size = shape.batch * shape.image_size();
    return {images, to, shape.tiles(tangent), shape.trajectories * size, size, size, size};
  }
};

// The image gradient of planes of several squares: adds up shares that overlap.
struct FirstLayerSquares {
  FirstLayerShape shape;
  const float* shares;  // [tiles, K, B, Q, 34, 34, I]
  int64_t tiles;
  float* grad_images;  // [K, B, S, S, I]
};

struct FirstLayerBackward {
  FirstLayerInputs in;
  const float* mean;      // [K, B, C]
  const float* rstd;      // [K, B, C]
  const float* grad_out;  // [K, B, O/2, O/2, C]
  FirstLayerShares out;
};

// All results are the tangents of the results of the backward pass.
struct FirstLayerBackwardTangent {
  FirstLayerInputs in;
  FirstLayerTangents tangents;
  const float* mean_tangent;      // [K, B, C]
  const float* projection;        // [K, B, C]
  const float* grad_out;          // [K, B, O/2, O/2, C]
  const float* grad_out_tangent;  // [K, B, O/2, O/2, C]
  FirstLayerShares out;
};

namespace cuda {
// True if the current device has tensor cores and enough shared memory for the kernels.
bool first_layer_fits_device(const FirstLayerShape& shape);
void launch_first_layer_forward(const FirstLayerForward& params, Stream stream);
void launch_first_layer_tangent(const FirstLayerTangent& params, Stream stream);
void launch_first_layer_backward(const FirstLayerBackward& params, Stream stream);
void launch_first_layer_backward_tangent(const FirstLayerBackwardTangent& params, Stream stream);
void launch_first_layer_squares(const FirstLayerSquares& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
