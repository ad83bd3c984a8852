#include "ops/convolution.h"

#include "ops/run.h"

namespace trajmatch {

template <class T>
Convolution<T>::Convolution(const Network& network, size_t index, Workspace& workspace,
                            const Tensor& like)
    : index_(index),
      padding_(network.blocks[index].padding),
      in_size_(network.blocks[index].in_size),
      in_channels_(network.blocks[index].in_channels),
      channels_(network.width),
      inert_bias_(network.bias_is_inert()),
      own_(index == 0 && !like.is_cuda() && first_shape(0).fits()),
      workspace_(workspace),
      like_(like) {}

template <class T>
FirstConvolutionShape Convolution<T>::first_shape(int64_t batch) const {
  return {batch, in_size_, in_channels_, padding_, channels_};
}

template <class T>
Tensor Convolution<T>::packed_columns(const Tensor& weight, const char* name) {
  const Tensor packed =
      workspace_.contiguous(name, index_, {channels_, FirstConvolutionShape::kColumns}, like_);
  cpu::pack_first_columns(first_shape(0), read<T>(weight), write<T>(packed));
  return packed;
}

template <class T>
Tensor Convolution<T>::forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               const char* name) {
  if (!own_) return as_channels_last(convolution(x, weight, bias, padding_));
  const FirstConvolutionShape shape = first_shape(x.size(0));
  const Tensor packed =
      workspace_.contiguous("first_weight", index_, {shape.taps(), channels_}, like_);
  cpu::pack_first_weight(shape, read<T>(weight), write<T>(packed));
  const Tensor y = workspace_.channels_last(
      name, index_, {shape.batch, channels_, shape.out_size(), shape.out_size()}, like_);
  const FirstConvolutionForward<T> params{shape, read<T>(x), read<T>(packed), read<T>(bias),
                                          write<T>(y)};
  in_parallel(shape.batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution(params, b, e); });
  return y;
}

template <class T>
Tensor Convolution<T>::tangent(const Tensor& x, const OptionalTensor& x_tangent,
                               const Tensor& weight, const OptionalTensor& weight_tangent,
                               const OptionalTensor& bias_tangent) {
  if (!weight_tangent) return forward(*x_tangent, weight, std::nullopt, "y_through_input");
  const Tensor through_weight = forward(x, *weight_tangent, bias_tangent, "y_through_weight");
  if (!x_tangent) return through_weight;
  return add(forward(*x_tangent, weight, std::nullopt, "y_through_input"), through_weight);
}

template <class T>
Tensor Convolution<T>::input_gradient(const ConvolutionPairs& pairs) {
  const int64_t batch = pairs[0].grad_y.size(0);
  const Ints sizes{batch, in_channels_, in_size_, in_size_};
  const bool two = pairs.size() == 2;
  if (!own_) {
    // The library reads no more than the sizes of the input.
    const Tensor input = workspace_.channels_last("grad_x", index_, sizes, like_);
    const auto one = [&](const ConvolutionPair& pair) {
      return std::get<0>(
          convolution_backward(pair.grad_y, input, pair.factor, padding_, {true, false, false}));
    };
    return as_channels_last(two ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
  }
  const Tensor columns = packed_columns(pairs[0].factor, "first_columns");
  OptionalTensor columns_second;
  if (two) columns_second = packed_columns(pairs[1].factor, "first_columns_second");
  const Tensor grad_x = workspace_.channels_last("grad_x", index_, sizes, like_);
  const FirstConvolutionImages<T> params{
      first_shape(batch),      read<T>(pairs[0].grad_y),
      read<T>(columns),        two ? read<T>(pairs[1].grad_y) : nullptr,
      read<T>(columns_second), write<T>(grad_x)};
  in_parallel(batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution_images(params, b, e); });
  return grad_x;
}

template <class T>
void Convolution<T>::weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight) {
  Tensor to = grad_weight;
  const bool two = pairs.size() == 2;
  if (!own_) {
    const auto one = [&](const ConvolutionPair& pair) {
      return std::get<1>(convolution_backward(pair.grad_y, pair.factor, grad_weight, padding_,
                                              {false, true, false}));
    };
    copy(to, two ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
    return;
  }
  const int64_t batch = pairs[0].grad_y.size(0);
  const FirstConvolutionShape shape = first_shape(batch);
  const Tensor partial =
      workspace_.contiguous("first_partial", index_, {batch, shape.taps(), channels_}, like_);
  const FirstConvolutionWeight<T> params{shape,
                                         read<T>(pairs[0].factor),
                                         read<T>(pairs[0].grad_y),
                                         two ? read<T>(pairs[1].factor) : nullptr,
                                         two ? read<T>(pairs[1].grad_y) : nullptr,
                                         write<T>(partial),
                                         write<T>(to)};
  in_parallel(batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution_weight(params, b, e); });
  cpu::first_convolution_weight_finish(params);
}

template <class T>
void Convolution<T>::bias_gradient(const Tensor& grad_y, const Tensor& grad_bias) {
  Tensor to = grad_bias;
  if (inert_bias_) {
    torch::stable::zero_(to);
  } else {
    const int64_t rows = grad_y.numel() / channels_;
    copy(to, sum_over_rows(view(grad_y, 0, {rows, channels_}, {channels_, 1})));
  }
}

template class Convolution<float>;
template class Convolution<double>;

}  // namespace trajmatch
