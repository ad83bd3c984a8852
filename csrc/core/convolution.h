// 3x3 convolutions with stride 1 on the CPU, for layers that process a whole batch at a time
// (ops/library_layers.h). They use the Winograd transforms of the student engine (cpu/student).
//
// Letters: B images, I input channels, R x R input pixels, C output channels, S x S output pixels.
#pragma once

#include <cstdint>

#include "core/network.h"
#include "core/pages.h"
#include "core/student.h"

namespace trajmatch {

// One pass. It is linear in the input and in the weight, so a tangent is a sum of two terms. A null
// pointer stands for zero.
template <class T>
struct WinogradConvolution {
  const ConvolutionNode* node;
  bool precise;
  int64_t batch;
  const T *input, *input_tangent;    // [B, R, R, I]
  const T *weight, *weight_tangent;  // [C, I, 3, 3]

  // Forward pass: computes W x + b or, if there are tangents, W x' + W' x + b.
  const T* bias;  // [C]
  T* output;      // [B, S, S, C]

  // Backward pass, chosen by a null output. Takes gradients in the output. If grad_tangent is not
  // null, grad_weight receives the tangent of the weight gradient.
  const T *grad, *grad_tangent;        // [B, S, S, C]
  T* grad_weight;                      // [C, I, 3, 3]
  T *grad_input, *grad_input_tangent;  // [B, R, R, I], or null if not wanted

  // True if this implementation supports the convolution. On planes of a few pixels, some taps
  // often see only zeros. Winograd would turn their zero gradients into rounding errors, which Adam
  // would amplify.
  static bool takes(const ConvolutionNode& node) {
    return node.in_size >= 4 && node.kernel == 3 && node.stride == 1 && node.padding >= 1 &&
           (node.padding == 1 || node.in_channels <= 4);
  }
};

namespace cpu {
template <class T>
void winograd_convolution(const WinogradConvolution<T>& call, int64_t parts,
                          const InParallel& in_parallel, EngineMemory& memory);
}  // namespace cpu

}  // namespace trajmatch
