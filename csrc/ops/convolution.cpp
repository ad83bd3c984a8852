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
      workspace_(workspace),
      like_(like) {
  kind_ = on_cuda(like)                         ? Kind::kLibrary
          : index == 0 && first_shape(0).fits() ? Kind::kFirst
                                                : Kind::kWinograd;
}

template <class T>
Tensor Convolution<T>::forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                               const char* name) {
  switch (kind_) {
    case Kind::kFirst:
      return first_forward(x, weight, bias, name);
    case Kind::kWinograd:
      return winograd_forward({{x, weight}}, bias, name);
    default:
      return as_channels_last(convolution(x, weight, bias, padding_));
  }
}

template <class T>
Tensor Convolution<T>::tangent(const Tensor& x, const OptionalTensor& x_tangent,
                               const Tensor& weight, const OptionalTensor& weight_tangent,
                               const OptionalTensor& bias_tangent) {
  if (!weight_tangent) return forward(*x_tangent, weight, std::nullopt, "y_tangent");
  if (!x_tangent) return forward(x, *weight_tangent, bias_tangent, "y_tangent");
  if (kind_ == Kind::kWinograd) {
    return winograd_forward({{x, *weight_tangent}, {*x_tangent, weight}}, bias_tangent,
                            "y_tangent");
  }
  return add(forward(x, *weight_tangent, bias_tangent, "y_tangent"),
             forward(*x_tangent, weight, std::nullopt, "y_through_input"));
}

template <class T>
Tensor Convolution<T>::input_gradient(const ConvolutionPairs& pairs, const char* name) {
  switch (kind_) {
    case Kind::kFirst:
      return first_input_gradient(pairs, name);
    case Kind::kWinograd:
      return winograd_input_gradient(pairs, name);
    default:
      return library_input_gradient(pairs);
  }
}

template <class T>
void Convolution<T>::weight_gradient(const ConvolutionPairs& pairs, const Tensor& grad_weight) {
  switch (kind_) {
    case Kind::kFirst:
      return first_weight_gradient(pairs, grad_weight);
    case Kind::kWinograd:
      return winograd_weight_gradient(pairs, grad_weight);
    default:
      return library_weight_gradient(pairs, grad_weight);
  }
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

// The first convolution.

template <class T>
FirstConvolutionShape Convolution<T>::first_shape(int64_t batch) const {
  return {batch, in_size_, in_channels_, padding_, channels_};
}

template <class T>
Tensor Convolution<T>::first_forward(const Tensor& x, const Tensor& weight,
                                     const OptionalTensor& bias, const char* name) {
  const FirstConvolutionShape shape = first_shape(x.size(0));
  const Tensor packed =
      workspace_.contiguous("first_weight", index_, {shape.taps(), channels_}, like_);
  cpu::pack_first_weight(shape, read<T>(weight), write<T>(packed));
  const Tensor y = workspace_.channels_last(
      name, index_, {shape.batch, channels_, out_size(), out_size()}, like_);
  const FirstConvolutionForward<T> params{shape, read<T>(x), read<T>(packed), read<T>(bias),
                                          write<T>(y)};
  in_parallel(shape.batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution(params, b, e); });
  return y;
}

template <class T>
Tensor Convolution<T>::first_columns(const Tensor& weight, const char* name) {
  const Tensor packed =
      workspace_.contiguous(name, index_, {channels_, FirstConvolutionShape::kColumns}, like_);
  cpu::pack_first_columns(first_shape(0), read<T>(weight), write<T>(packed));
  return packed;
}

template <class T>
Tensor Convolution<T>::first_input_gradient(const ConvolutionPairs& pairs, const char* name) {
  const int64_t batch = pairs[0].grad_y.size(0);
  const bool two = pairs.size() == 2;
  const Tensor columns = first_columns(pairs[0].factor, "first_columns");
  OptionalTensor columns_second;
  if (two) columns_second = first_columns(pairs[1].factor, "first_columns_second");
  const Tensor grad_x =
      workspace_.channels_last(name, index_, {batch, in_channels_, in_size_, in_size_}, like_);
  const FirstConvolutionImages<T> params{
      first_shape(batch),      read<T>(pairs[0].grad_y),
      read<T>(columns),        two ? read<T>(pairs[1].grad_y) : nullptr,
      read<T>(columns_second), write<T>(grad_x)};
  in_parallel(batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution_images(params, b, e); });
  return grad_x;
}

template <class T>
void Convolution<T>::first_weight_gradient(const ConvolutionPairs& pairs,
                                           const Tensor& grad_weight) {
  const int64_t batch = pairs[0].grad_y.size(0);
  const bool two = pairs.size() == 2;
  const FirstConvolutionShape shape = first_shape(batch);
  const Tensor partial =
      workspace_.contiguous("first_partial", index_, {batch, shape.taps(), channels_}, like_);
  const FirstConvolutionWeight<T> params{shape,
                                         read<T>(pairs[0].factor),
                                         read<T>(pairs[0].grad_y),
                                         two ? read<T>(pairs[1].factor) : nullptr,
                                         two ? read<T>(pairs[1].grad_y) : nullptr,
                                         write<T>(partial),
                                         write<T>(grad_weight)};
  in_parallel(batch, 1, [&](int64_t b, int64_t e) { cpu::first_convolution_weight(params, b, e); });
  cpu::first_convolution_weight_finish(params);
}

// Winograd.

template <class T>
WinogradShape Convolution<T>::winograd_shape(int64_t batch) const {
  return {batch, in_size_, in_channels_, padding_, channels_};
}

template <class T>
WinogradShape Convolution<T>::turned_shape(int64_t batch) const {
  return {batch, out_size(), channels_, 2 - padding_, in_channels_};
}

namespace {

template <class T>
void run_winograd(const WinogradShape& shape, const std::vector<Tensor>& inputs,
                  const std::vector<Tensor>& packed, const OptionalTensor& bias, const Tensor& y) {
  WinogradConvolution<T> params{
      shape, static_cast<int>(inputs.size()), {}, read<T>(bias), write<T>(y)};
  for (size_t i = 0; i < inputs.size(); ++i) {
    params.term[i] = {read<T>(inputs[i]), read<T>(packed[i])};
  }
  in_parallel(shape.groups(), 1,
              [&](int64_t b, int64_t e) { cpu::winograd_convolution(params, b, e); });
}

constexpr const char* kPackedNames[2] = {"winograd_weight", "winograd_weight_second"};

}  // namespace

template <class T>
Tensor Convolution<T>::winograd_forward(const std::vector<Term>& terms, const OptionalTensor& bias,
                                        const char* name) {
  const WinogradShape shape = winograd_shape(terms[0].x.size(0));
  std::vector<Tensor> inputs, packed;
  for (size_t i = 0; i < terms.size(); ++i) {
    inputs.push_back(terms[i].x);
    packed.push_back(workspace_.contiguous(kPackedNames[i], index_, {shape.packed_size()}, like_));
    in_parallel(in_channels_, 1, [&](int64_t b, int64_t e) {
      cpu::pack_winograd(shape, read<T>(terms[i].weight), write<T>(packed[i]), b, e);
    });
  }
  const Tensor y = workspace_.channels_last(
      name, index_, {shape.batch, channels_, out_size(), out_size()}, like_);
  run_winograd<T>(shape, inputs, packed, bias, y);
  return y;
}

template <class T>
Tensor Convolution<T>::winograd_input_gradient(const ConvolutionPairs& pairs, const char* name) {
  const WinogradShape shape = turned_shape(pairs[0].grad_y.size(0));
  std::vector<Tensor> inputs, packed;
  for (size_t i = 0; i < pairs.size(); ++i) {
    inputs.push_back(pairs[i].grad_y);
    packed.push_back(workspace_.contiguous(kPackedNames[i], index_, {shape.packed_size()}, like_));
    in_parallel(channels_, 1, [&](int64_t b, int64_t e) {
      cpu::pack_winograd_turned(shape, read<T>(pairs[i].factor), write<T>(packed[i]), b, e);
    });
  }
  const Tensor grad_x = workspace_.channels_last(
      name, index_, {shape.batch, in_channels_, in_size_, in_size_}, like_);
  run_winograd<T>(shape, inputs, packed, std::nullopt, grad_x);
  return grad_x;
}

template <class T>
void Convolution<T>::winograd_weight_gradient(const ConvolutionPairs& pairs,
                                              const Tensor& grad_weight) {
  const WinogradShape shape = winograd_shape(pairs[0].grad_y.size(0));
  const Tensor partial = workspace_.contiguous(
      "winograd_partial", index_,
      {shape.weight_parts(), WinogradShape::kFrequencies, in_channels_, channels_}, like_);
  WinogradWeight<T> params{
      shape, static_cast<int>(pairs.size()), {}, write<T>(partial), write<T>(grad_weight)};
  for (size_t i = 0; i < pairs.size(); ++i) {
    params.pair[i] = {read<T>(pairs[i].factor), read<T>(pairs[i].grad_y)};
  }
  in_parallel(shape.weight_parts(), 1,
              [&](int64_t b, int64_t e) { cpu::winograd_weight(params, b, e); });
  in_parallel(in_channels_, 1,
              [&](int64_t b, int64_t e) { cpu::winograd_weight_finish(params, b, e); });
}

// The library.

template <class T>
Tensor Convolution<T>::library_input_gradient(const ConvolutionPairs& pairs) {
  // The library reads no more than the sizes of the input.
  const Ints sizes{pairs[0].grad_y.size(0), in_channels_, in_size_, in_size_};
  const Tensor input = workspace_.channels_last("sizes_only", index_, sizes, like_);
  const auto one = [&](const ConvolutionPair& pair) {
    return std::get<0>(
        convolution_backward(pair.grad_y, input, pair.factor, padding_, {true, false, false}));
  };
  return as_channels_last(pairs.size() == 2 ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
}

template <class T>
void Convolution<T>::library_weight_gradient(const ConvolutionPairs& pairs,
                                             const Tensor& grad_weight) {
  const auto one = [&](const ConvolutionPair& pair) {
    return std::get<1>(convolution_backward(pair.grad_y, pair.factor, grad_weight, padding_,
                                            {false, true, false}));
  };
  Tensor to = grad_weight;
  copy(to, pairs.size() == 2 ? add(one(pairs[0]), one(pairs[1])) : one(pairs[0]));
}

template class Convolution<float>;
template class Convolution<double>;

}  // namespace trajmatch
