// The convolution or linear layer of one block, or neither (y = x), with the gradients and tangents
// that the layer-by-layer walk needs: the library's, in channels-last.
#pragma once

#include <vector>

#include "ops/network.h"
#include "ops/workspace.h"

namespace trajmatch {

// A gradient that reaches y, with what it is multiplied by: the weight for the gradient in x, x for
// the gradient in the weight. y = W x + b is linear in both, so gradients are sums over one pair
// and their tangents sums over two.
struct ConvolutionPair {
  Tensor grad_y, factor;
};
using ConvolutionPairs = std::vector<ConvolutionPair>;

class Convolution {
 public:
  Convolution(const Network& network, size_t index, Workspace& workspace, const Tensor& like);

  Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) const;
  // y' = W x' + W' x + b'; x' or W' may be absent, not both.
  Tensor tangent(const Tensor& x, const OptionalTensor& x_tangent, const Tensor& weight,
                 const OptionalTensor& weight_tangent, const OptionalTensor& bias_tangent) const;

  // Sum over the pairs (one or two) of the gradients in x, [B, I, H, W] in channels-last.
  Tensor input_gradient(const ConvolutionPairs& pairs) const;
  // Writes the sum over the pairs (one or two) of the gradients in the weight [C, I, k, k].
  void weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight) const;
  // Writes the gradient in the bias [C].
  void bias_gradient(const Tensor& grad_y, const Tensor& grad_bias) const;

 private:
  Tensor one_input_gradient(const ConvolutionPair& pair) const;
  Tensor one_weight_gradient(const ConvolutionPair& pair, const Tensor& grad_weight) const;

  size_t index_;
  Block block_;
  Workspace& workspace_;
  Tensor like_;
};

}  // namespace trajmatch
