// The convolution of one block with the gradients and tangents that the engine's walks need. On
// the CPU it is our own: core/first_convolution.h for a first layer of few channels, Winograd
// (core/winograd.h) for all others. On CUDA it is the library's, in channels-last.
#pragma once

#include <vector>

#include "core/first_convolution.h"
#include "core/winograd.h"
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

template <class T>
class Convolution {
 public:
  Convolution(const Network& network, size_t index, Workspace& workspace, const Tensor& like);

  // `name` says where in the workspace the result of our own convolution lies.
  Tensor forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                 const char* name);
  // y' = W x' + W' x + b'; x' or W' may be absent, not both.
  Tensor tangent(const Tensor& x, const OptionalTensor& x_tangent, const Tensor& weight,
                 const OptionalTensor& weight_tangent, const OptionalTensor& bias_tangent);

  // Sum over the pairs (one or two) of the gradients in x, [B, I, H, W] in channels-last.
  Tensor input_gradient(const ConvolutionPairs& pairs, const char* name);
  // Writes the sum over the pairs (one or two) of the gradients in the weight [C, I, 3, 3].
  void weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight);
  // Writes the gradient in the bias [C].
  void bias_gradient(const Tensor& grad_y, const Tensor& grad_bias);

 private:
  enum class Kind { kFirst, kWinograd, kLibrary };

  FirstConvolutionShape first_shape(int64_t batch) const;
  WinogradShape winograd_shape(int64_t batch) const;
  // Of the gradient in the input, as a convolution of grad_y.
  WinogradShape turned_shape(int64_t batch) const;
  int64_t out_size() const { return in_size_ + 2 * padding_ - 2; }

  Tensor first_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const char* name);
  Tensor first_columns(const Tensor& weight, const char* name);
  Tensor first_input_gradient(const ConvolutionPairs& pairs, const char* name);
  void first_weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight);

  // One or two inputs with their weights.
  struct Term {
    Tensor x, weight;
  };
  Tensor winograd_forward(const std::vector<Term>& terms, const OptionalTensor& bias,
                          const char* name);
  Tensor winograd_input_gradient(const ConvolutionPairs& pairs, const char* name);
  void winograd_weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight);

  Tensor library_input_gradient(const ConvolutionPairs& pairs);
  void library_weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight);

  size_t index_;
  int64_t padding_, in_size_, in_channels_, channels_;
  bool inert_bias_;
  Kind kind_;
  Workspace& workspace_;
  Tensor like_;
};

extern template class Convolution<float>;
extern template class Convolution<double>;

}  // namespace trajmatch
