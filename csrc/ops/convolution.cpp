#include "ops/convolution.h"

#include "ops/torch_api.h"

namespace trajmatch {

Convolution::Convolution(const Network& network, size_t index, Workspace& workspace,
                         const Tensor& like)
    : index_(index),
      padding_(network.blocks[index].padding),
      in_size_(network.blocks[index].in_size),
      in_channels_(network.blocks[index].in_channels),
      channels_(network.width),
      inert_bias_(network.bias_is_inert()),
      workspace_(workspace),
      like_(like) {}

Tensor Convolution::forward(const Tensor& x, const Tensor& weight,
                            const OptionalTensor& bias) const {
  return as_channels_last(convolution(x, weight, bias, padding_));
}

Tensor Convolution::tangent(const Tensor& x, const OptionalTensor& x_tangent, const Tensor& weight,
                            const OptionalTensor& weight_tangent,
                            const OptionalTensor& bias_tangent) const {
  if (!weight_tangent) return forward(*x_tangent, weight, std::nullopt);
  const Tensor through_weight = forward(x, *weight_tangent, bias_tangent);
  return x_tangent ? add(through_weight, forward(*x_tangent, weight, std::nullopt))
                   : through_weight;
}

Tensor Convolution::input_gradient(const ConvolutionPairs& pairs) const {
  // The library reads no more than the sizes of the input.
  const Ints sizes{pairs[0].grad_y.size(0), in_channels_, in_size_, in_size_};
  const Tensor input = workspace_.channels_last("sizes_only", index_, sizes, like_);
  const auto one = [&](const ConvolutionPair& pair) {
    return std::get<0>(
        convolution_backward(pair.grad_y, input, pair.factor, padding_, {true, false, false}));
  };
  return as_channels_last(pairs.size() == 2 ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
}

void Convolution::weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight) const {
  const auto one = [&](const ConvolutionPair& pair) {
    return std::get<1>(convolution_backward(pair.grad_y, pair.factor, grad_weight, padding_,
                                            {false, true, false}));
  };
  Tensor to = grad_weight;
  copy(to, pairs.size() == 2 ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
}

void Convolution::bias_gradient(const Tensor& grad_y, const Tensor& grad_bias) const {
  Tensor to = grad_bias;
  if (inert_bias_) {
    torch::stable::zero_(to);
  } else {
    const int64_t rows = grad_y.numel() / channels_;
    copy(to, sum_over_rows(view(grad_y, 0, {rows, channels_}, {channels_, 1})));
  }
}

}  // namespace trajmatch
