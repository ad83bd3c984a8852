#include "ops/convolution.h"

#include "ops/torch_api.h"

namespace trajmatch {

namespace {

// Images or weights as the rows of a matrix, in the order of parameters (C, H, W), and back.
Tensor as_rows(const Tensor& images) {
  const int64_t rows = images.size(0), columns = images.numel() / rows;
  return view(as_contiguous(images), 0, {rows, columns}, {columns, 1});
}

Tensor as_images(const Tensor& rows, int64_t channels, int64_t size) {
  const Ints sizes{rows.size(0), channels, size, size};
  return view(as_contiguous(rows), 0, sizes, contiguous_strides(sizes));
}

}  // namespace

Convolution::Convolution(const Network& network, size_t index, Workspace& workspace,
                         const Tensor& like)
    : index_(index), block_(network.blocks[index]), workspace_(workspace), like_(like) {}

Tensor Convolution::forward(const Tensor& x, const Tensor& weight,
                            const OptionalTensor& bias) const {
  if (!block_.convolves()) return x;
  if (block_.is_linear()) {
    return as_images(linear(as_rows(x), as_rows(weight), bias), block_.shape.channels, 1);
  }
  return as_channels_last(convolution(x, weight, bias, block_.stride, block_.padding));
}

Tensor Convolution::tangent(const Tensor& x, const OptionalTensor& x_tangent, const Tensor& weight,
                            const OptionalTensor& weight_tangent,
                            const OptionalTensor& bias_tangent) const {
  if (!block_.convolves()) return *x_tangent;
  if (!weight_tangent) return forward(*x_tangent, weight, std::nullopt);
  const Tensor through_weight = forward(x, *weight_tangent, bias_tangent);
  return x_tangent ? add(through_weight, forward(*x_tangent, weight, std::nullopt))
                   : through_weight;
}

Tensor Convolution::one_input_gradient(const ConvolutionPair& pair) const {
  if (block_.is_linear()) {
    return as_images(mm(as_rows(pair.grad_y), as_rows(pair.factor)), block_.in_channels,
                     block_.in_size);
  }
  // The library reads no more than the sizes of the input.
  const Ints sizes{pair.grad_y.size(0), block_.in_channels, block_.in_size, block_.in_size};
  const Tensor input = workspace_.channels_last("sizes_only", index_, sizes, like_);
  return std::get<0>(convolution_backward(pair.grad_y, input, pair.factor, block_.stride,
                                          block_.padding, {true, false, false}));
}

Tensor Convolution::input_gradient(const ConvolutionPairs& pairs) const {
  if (!block_.convolves()) return pairs[0].grad_y;
  const Tensor first = one_input_gradient(pairs[0]);
  return as_channels_last(pairs.size() == 2 ? add(first, one_input_gradient(pairs[1])) : first);
}

Tensor Convolution::one_weight_gradient(const ConvolutionPair& pair,
                                        const Tensor& grad_weight) const {
  if (block_.is_linear()) {
    return as_images(mm(transposed(as_rows(pair.grad_y)), as_rows(pair.factor)), block_.in_channels,
                     block_.in_size);
  }
  return std::get<1>(convolution_backward(pair.grad_y, pair.factor, grad_weight, block_.stride,
                                          block_.padding, {false, true, false}));
}

void Convolution::weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight) const {
  if (!block_.convolves()) return;
  const Tensor first = one_weight_gradient(pairs[0], grad_weight);
  Tensor to = grad_weight;
  copy(to, pairs.size() == 2 ? add(first, one_weight_gradient(pairs[1], grad_weight)) : first);
}

void Convolution::bias_gradient(const Tensor& grad_y, const Tensor& grad_bias) const {
  if (!block_.convolves()) return;
  Tensor to = grad_bias;
  if (block_.bias_is_inert()) {
    torch::stable::zero_(to);
  } else {
    const int64_t channels = block_.shape.channels, rows = grad_y.numel() / channels;
    copy(to, sum_over_rows(view(grad_y, 0, {rows, channels}, {channels, 1})));
  }
}

}  // namespace trajmatch
