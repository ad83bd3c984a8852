// 3x3 convolutions with stride 1 on the CPU, by the Winograd transforms of the student engine
// (cpu/student), for layers that run a whole batch at a time (ops/library_layers.h).
//
// Letters: B images, I input channels, R x R input pixels, C output channels, S x S output pixels.
#pragma once

#include <cstdint>

#include "core/network.h"
#include "core/pages.h"
#include "core/student.h"

namespace trajmatch {

// One pass. It is linear in input and weight, so tangents are sums of two terms; what is null is
// zero.
template <class T>
struct WinogradConvolution {
  const ConvolutionNode* node;
  bool precise;
  int64_t batch;
  const T *input, *input_tangent;    // [B, R, R, I]
  const T *weight, *weight_tangent;  // [C, I, 3, 3]

  // Forward: W x + b or, where there is a tangent, W x' + W' x + b.
  const T* bias;  // [C]
  T* output;      // [B, S, S, C]

  // Backward, where output is null. Gradients in the output, and what they give; the tangent of
  // the weight's gradient is written where there is one of grad.
  const T *grad, *grad_tangent;        // [B, S, S, C]
  T* grad_weight;                      // [C, I, 3, 3]
  T *grad_input, *grad_input_tangent;  // [B, R, R, I], or null: not wanted

  // Whether a convolution is one that this runs. On a few pixels taps often meet nothing but zeros,
  // and their gradients would be rounding errors in place of 0, which Adam makes large.
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
