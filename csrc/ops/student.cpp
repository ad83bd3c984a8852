#include "ops/student.h"

#include <string>
#include <utility>

namespace trajmatch {

namespace {

Ints channels_last_strides(const Ints& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], 1, sizes[3] * sizes[1], sizes[1]};
}

Ints contiguous_strides(const Ints& sizes) {
  Ints strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

int64_t product(const Ints& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) result *= size;
  return result;
}

// Sum of two gradients of which either may be absent.
Tensor sum(const OptionalTensor& a, const OptionalTensor& b) {
  if (!a) return *b;
  return b ? add(*a, *b) : *a;
}

template <class T>
SoftCrossEntropyInputs<T> loss_inputs(const StudentProblem& problem, const Tensor& logits) {
  const bool soft = problem.soft_labels();
  return {logits.size(0),
          logits.size(1),
          problem.scale,
          nullptr,
          read<T>(logits),
          soft ? nullptr : read<int64_t>(problem.labels),
          soft ? read<T>(problem.labels) : nullptr};
}

// Copies between the order (C, pixels) of parameters and (pixels, C) of activations.
void copy_to_pixels_first(const Tensor& to, const Tensor& from, int64_t rows, int64_t channels,
                          int64_t pixels) {
  Tensor permuted = view(to, 0, {rows, channels, pixels}, {channels * pixels, 1, channels});
  copy(permuted, view(from, 0, {rows, channels, pixels}, {channels * pixels, pixels, 1}));
}

void copy_to_channels_first(const Tensor& to, const Tensor& from, int64_t rows, int64_t channels,
                            int64_t pixels) {
  Tensor permuted = view(to, 0, {rows, channels, pixels}, {channels * pixels, pixels, 1});
  copy(permuted, view(from, 0, {rows, channels, pixels}, {channels * pixels, 1, channels}));
}

}  // namespace

template <class T>
Student<T>::Student(const Network& network, const Tensor& like)
    : network_(network), like_(like), blocks_(network.blocks.size()) {}

template <class T>
Tensor Student<T>::workspace(const char* name, size_t block, const Ints& sizes,
                             bool channels_last) {
  const std::pair<std::string, size_t> key(name, block);
  Tensor* buffer = nullptr;
  for (auto& entry : buffers_) {
    if (entry.first == key) buffer = &entry.second;
  }
  const int64_t size = product(sizes);
  if (buffer == nullptr) {
    buffers_.emplace_back(key, empty({size}, like_));
    buffer = &buffers_.back().second;
  } else if (buffer->numel() < size) {
    *buffer = empty({size}, like_);
  }
  return view(*buffer, 0, sizes,
              channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes));
}

template <class T>
Tensor Student<T>::conv_weight(const Tensor& theta, size_t index) const {
  const Block& block = network_.blocks[index];
  const Ints sizes{network_.width, block.in_channels, 3, 3};
  return view(theta, block.weight.offset, sizes, contiguous_strides(sizes));
}

template <class T>
OptionalTensor Student<T>::conv_bias(const Tensor& theta, size_t index) const {
  if (network_.bias_is_inert()) return std::nullopt;
  const Block& block = network_.blocks[index];
  return vector_view(theta, block.bias.offset, block.bias.size);
}

template <class T>
OptionalTensor Student<T>::norm_parameters(const Tensor& theta, const Slice& slice,
                                           const Block& block, const char* name, size_t index) {
  if (slice.size == 0) return std::nullopt;
  const Tensor values = vector_view(theta, slice.offset, slice.size);
  if (!block.shape.elementwise) return values;
  Tensor permuted = workspace(name, index, {slice.size});
  copy_to_pixels_first(permuted, values, 1, network_.width, block.shape.pixels());
  return permuted;
}

template <class T>
Tensor Student<T>::classifier_weight(const Tensor& theta, const char* name) {
  const Slice& slice = network_.classifier_weight;
  Tensor permuted = workspace(name, 0, {network_.num_classes, network_.features});
  copy_to_pixels_first(permuted, vector_view(theta, slice.offset, slice.size), network_.num_classes,
                       network_.width, network_.feature_pixels);
  return permuted;
}

// [B, C, H, W] in channels-last as [B, H * W * C], and back.
template <class T>
Tensor Student<T>::features(const Tensor& activations) const {
  return view(activations, 0, {activations.size(0), network_.features}, {network_.features, 1});
}

template <class T>
Tensor Student<T>::activations(const Tensor& features, int64_t batch) const {
  const NormActPoolShape& shape = network_.blocks.back().shape;
  const Ints sizes{batch, network_.width, shape.out_height(), shape.out_width()};
  return view(features, 0, sizes, channels_last_strides(sizes));
}

template <class T>
void Student<T>::read_parameters(const StudentProblem& problem) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    blocks_[i].weight = conv_weight(problem.theta, i);
    blocks_[i].norm_weight =
        norm_parameters(problem.theta, block.norm_weight, block, "norm_weight", i);
    blocks_[i].norm_bias = norm_parameters(problem.theta, block.norm_bias, block, "norm_bias", i);
  }
  head_ = classifier_weight(problem.theta, "head");
}

// Fills the blocks' states and returns the logits [B, K].
template <class T>
Tensor Student<T>::forward(const StudentProblem& problem) {
  const Device device(like_);
  read_parameters(problem);
  const int64_t batch = problem.batch();
  Tensor input = problem.images;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = network_.blocks[i].shape_of(batch);
    state.input = input;
    state.y = as_channels_last(
        convolution(input, state.weight, conv_bias(problem.theta, i), network_.blocks[i].padding));
    state.mean = workspace("mean", i, {batch, shape.groups});
    state.rstd = workspace("rstd", i, {batch, shape.groups});
    Tensor output = workspace("output", i,
                              {batch, shape.channels, shape.out_height(), shape.out_width()}, true);
    run(NormActPoolForward<T>{shape, read<T>(state.y), read<T>(state.norm_weight),
                              read<T>(state.norm_bias), write<T>(output), write<T>(state.mean),
                              write<T>(state.rstd)},
        device);
    input = output;
  }
  last_ = input;
  const Slice& bias = network_.classifier_bias;
  return as_contiguous(
      linear(features(last_), head_, vector_view(problem.theta, bias.offset, bias.size)));
}

template <class T>
void Student<T>::write_classifier_gradient(const Tensor& grad_theta, const Tensor& weight,
                                           const Tensor& bias) {
  const Slice &w = network_.classifier_weight, &b = network_.classifier_bias;
  copy_to_channels_first(vector_view(grad_theta, w.offset, w.size), as_contiguous(weight),
                         network_.num_classes, network_.width, network_.feature_pixels);
  Tensor bias_place = vector_view(grad_theta, b.offset, b.size);
  copy(bias_place, bias);
}

// Undefined gradients are those of inert biases, which are exactly zero.
template <class T>
void Student<T>::write_conv_gradient(const Tensor& grad_theta, size_t index, const Tensor& weight,
                                     const Tensor& bias) {
  const Slice& slice = network_.blocks[index].bias;
  Tensor weight_place = conv_weight(grad_theta, index);
  copy(weight_place, weight);
  Tensor bias_place = vector_view(grad_theta, slice.offset, slice.size);
  if (bias.defined()) {
    copy(bias_place, bias);
  } else {
    torch::stable::zero_(bias_place);
  }
}

// Where the kernels write the gradient of a norm's parameters: straight into grad_theta, or into a
// workspace in their own order that finish_norm_gradient puts into the order of parameters.
template <class T>
Tensor Student<T>::norm_gradient(const Tensor& grad_theta, const Slice& slice, const Block& block,
                                 const char* name) {
  return block.shape.elementwise ? workspace(name, 0, {slice.size})
                                 : vector_view(grad_theta, slice.offset, slice.size);
}

template <class T>
void Student<T>::finish_norm_gradient(const Tensor& grad_theta, const Slice& slice,
                                      const Block& block, const Tensor& values) {
  if (!block.shape.elementwise) return;
  copy_to_channels_first(vector_view(grad_theta, slice.offset, slice.size), values, 1,
                         network_.width, block.shape.pixels());
}

template <class T>
void Student<T>::gradient(const StudentProblem& problem, const Tensor& loss,
                          const Tensor& grad_theta, const OptionalTensor& grad_images,
                          const OptionalTensor& grad_labels) {
  const Device device(like_);
  const int64_t batch = problem.batch(), classes = network_.num_classes;
  const Tensor logits = forward(problem);

  Tensor grad_logits = workspace("grad_logits", 0, {batch, classes});
  if (problem.loss == StudentLoss::kSumLogits) {
    fill(grad_logits, 1.0);
    Tensor result = loss;
    copy(result, sum_all(logits));
  } else {
    const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, logits);
    const Tensor rows = workspace("rows", 0, {batch});
    run(SoftCrossEntropyForward<T>{inputs, write<T>(rows), write<T>(loss)}, device);
    run(SoftCrossEntropyBackward<T>{inputs, write<T>(grad_logits), write<T>(grad_labels)}, device);
  }

  write_classifier_gradient(grad_theta, mm(transposed(grad_logits), features(last_)),
                            sum_over_rows(grad_logits));
  Tensor grad_output = activations(as_contiguous(mm(grad_logits, head_)), batch);
  for (size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = block.shape_of(batch);
    Tensor grad_y = workspace("grad_y", i, sizes_of(state.y), true);
    const bool affine = state.norm_weight.has_value();
    OptionalTensor grad_weight, grad_bias, partial;
    if (affine) {
      grad_weight = norm_gradient(grad_theta, block.norm_weight, block, "grad_norm_weight");
      grad_bias = norm_gradient(grad_theta, block.norm_bias, block, "grad_norm_bias");
      partial = workspace("partial", 0, {batch, 2, shape.affine_size()});
    }
    run(NormActPoolBackward<T>{shape, read<T>(state.y), read<T>(state.norm_weight),
                               read<T>(state.norm_bias), read<T>(state.mean), read<T>(state.rstd),
                               read<T>(grad_output), write<T>(grad_y), write<T>(partial),
                               write<T>(grad_weight), write<T>(grad_bias)},
        device);
    if (affine) {
      finish_norm_gradient(grad_theta, block.norm_weight, block, *grad_weight);
      finish_norm_gradient(grad_theta, block.norm_bias, block, *grad_bias);
    }
    const bool input_wanted = i > 0 || grad_images.has_value();
    auto [grad_input, weight, bias] =
        convolution_backward(grad_y, state.input, state.weight, block.padding,
                             {input_wanted, true, !network_.bias_is_inert()});
    write_conv_gradient(grad_theta, i, weight, bias);
    if (i > 0) {
      grad_output = as_channels_last(grad_input);
    } else if (grad_images) {
      Tensor result = *grad_images;
      copy(result, grad_input);
    }
  }
}

// Fills the tangents in the blocks' states and returns the tangent of the logits.
template <class T>
Tensor Student<T>::forward_tangent(const StudentProblem& problem, const StudentTangents& tangents) {
  const Device device(like_);
  const int64_t batch = problem.batch();
  OptionalTensor input_tangent = tangents.images;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = block.shape_of(batch);
    state.input_tangent = input_tangent;
    OptionalTensor through_input, through_weight;
    if (input_tangent) {
      through_input = convolution(*input_tangent, state.weight, std::nullopt, block.padding);
    }
    state.norm_weight_tangent = state.norm_bias_tangent = std::nullopt;
    if (tangents.theta) {
      state.weight_tangent = conv_weight(*tangents.theta, i);
      state.norm_weight_tangent =
          norm_parameters(*tangents.theta, block.norm_weight, block, "norm_weight_tangent", i);
      state.norm_bias_tangent =
          norm_parameters(*tangents.theta, block.norm_bias, block, "norm_bias_tangent", i);
      through_weight = convolution(state.input, state.weight_tangent, conv_bias(*tangents.theta, i),
                                   block.padding);
    }
    state.y_tangent = as_channels_last(sum(through_input, through_weight));
    state.mean_tangent = workspace("mean_tangent", i, {batch, shape.groups});
    state.projection = workspace("projection", i, {batch, shape.groups});
    Tensor output = workspace("output_tangent", i,
                              {batch, shape.channels, shape.out_height(), shape.out_width()}, true);
    run(NormActPoolTangent<T>{shape, read<T>(state.y), read<T>(state.norm_weight),
                              read<T>(state.norm_bias), read<T>(state.mean), read<T>(state.rstd),
                              read<T>(state.y_tangent), read<T>(state.norm_weight_tangent),
                              read<T>(state.norm_bias_tangent), write<T>(output),
                              write<T>(state.mean_tangent), write<T>(state.projection)},
        device);
    input_tangent = output;
  }
  last_tangent_ = *input_tangent;
  const Tensor through_features = linear(features(last_tangent_), head_, std::nullopt);
  if (!tangents.theta) return as_contiguous(through_features);
  head_tangent_ = classifier_weight(*tangents.theta, "head_tangent");
  const Slice& bias = network_.classifier_bias;
  return as_contiguous(
      add(through_features, linear(features(last_), head_tangent_,
                                   vector_view(*tangents.theta, bias.offset, bias.size))));
}

template <class T>
void Student<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                              const Tensor& directional, const Tensor& grad_theta,
                              const Tensor& grad_images, const OptionalTensor& grad_labels) {
  const Device device(like_);
  const int64_t batch = problem.batch(), classes = network_.num_classes;
  const Tensor logits = forward(problem);
  const Tensor logits_tangent = forward_tangent(problem, tangents);

  Tensor grad_logits = workspace("grad_logits", 0, {batch, classes});
  Tensor grad_logits_tangent = workspace("grad_logits_tangent", 0, {batch, classes});
  if (problem.loss == StudentLoss::kSumLogits) {
    fill(grad_logits, 1.0);
    torch::stable::zero_(grad_logits_tangent);
    Tensor result = directional;
    copy(result, sum_all(logits_tangent));
  } else {
    const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, logits);
    const Tensor rows = workspace("rows", 0, {batch});
    run(SoftCrossEntropyBackward<T>{inputs, write<T>(grad_logits), nullptr}, device);
    run(SoftCrossEntropyBackwardTangent<T>{inputs, read<T>(logits_tangent),
                                           read<T>(tangents.labels), write<T>(rows),
                                           write<T>(directional), write<T>(grad_logits_tangent),
                                           write<T>(grad_labels)},
        device);
  }
  // Classifier. (W f)' = W' f + W f'; the gradient of W is grad_logits^T f.
  OptionalTensor through_weight;
  Tensor weight = mm(transposed(grad_logits_tangent), features(last_));
  weight = add(weight, mm(transposed(grad_logits), features(last_tangent_)));
  write_classifier_gradient(grad_theta, weight, sum_over_rows(grad_logits_tangent));
  Tensor grad_output = activations(as_contiguous(mm(grad_logits, head_)), batch);
  if (tangents.theta) through_weight = mm(grad_logits, head_tangent_);
  Tensor grad_output_tangent =
      activations(as_contiguous(sum(mm(grad_logits_tangent, head_), through_weight)), batch);

  for (size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = block.shape_of(batch);
    Tensor grad_y = workspace("grad_y", i, sizes_of(state.y), true);
    Tensor grad_y_tangent = workspace("grad_y_tangent", i, sizes_of(state.y), true);
    const bool affine = state.norm_weight.has_value();
    OptionalTensor grad_weight, grad_bias, partial;
    if (affine) {
      grad_weight = norm_gradient(grad_theta, block.norm_weight, block, "grad_norm_weight");
      grad_bias = norm_gradient(grad_theta, block.norm_bias, block, "grad_norm_bias");
      partial = workspace("partial", 0, {batch, 2, shape.affine_size()});
    }
    run(
        NormActPoolBackwardTangent<T>{
            shape, read<T>(state.y), read<T>(state.norm_weight), read<T>(state.norm_bias),
            read<T>(state.mean), read<T>(state.rstd), read<T>(state.y_tangent),
            read<T>(state.norm_weight_tangent), read<T>(state.norm_bias_tangent),
            read<T>(state.mean_tangent), read<T>(state.projection), read<T>(grad_output),
            read<T>(grad_output_tangent), write<T>(grad_y), write<T>(grad_y_tangent),
            write<T>(partial), write<T>(grad_weight), write<T>(grad_bias)},
        device);
    if (affine) {
      finish_norm_gradient(grad_theta, block.norm_weight, block, *grad_weight);
      finish_norm_gradient(grad_theta, block.norm_bias, block, *grad_bias);
    }

    // Convolution y = W x. Its gradients dW = x * dy and dx = W * dy are bilinear, so each tangent
    // is a sum of two terms, one through each factor.
    auto [input_1, weight_1, bias_1] =
        convolution_backward(grad_y_tangent, state.input, state.weight, block.padding,
                             {true, true, !network_.bias_is_inert()});
    Tensor weight_total = weight_1, input_total = input_1;
    const bool has_input_tangent = state.input_tangent.has_value();
    if (has_input_tangent || tangents.theta) {
      auto [input_2, weight_2, bias_2] =
          convolution_backward(grad_y, has_input_tangent ? *state.input_tangent : state.input,
                               tangents.theta ? state.weight_tangent : state.weight, block.padding,
                               {tangents.theta.has_value(), has_input_tangent, false});
      if (has_input_tangent) weight_total = add(weight_total, weight_2);
      if (tangents.theta) input_total = add(input_total, input_2);
    }
    write_conv_gradient(grad_theta, i, weight_total, bias_1);
    if (i == 0) {
      Tensor result = grad_images;
      copy(result, input_total);
    } else {
      auto [input_0, weight_0, bias_0] = convolution_backward(grad_y, state.input, state.weight,
                                                              block.padding, {true, false, false});
      grad_output = as_channels_last(input_0);
      grad_output_tangent = as_channels_last(input_total);
    }
  }
}

template class Student<float>;
template class Student<double>;

}  // namespace trajmatch
