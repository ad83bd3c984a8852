#include "ops/layer_student.h"

#include <string>
#include <utility>

namespace trajmatch {

namespace {

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
LayerStudent<T>::LayerStudent(const Network& network, const Tensor& like)
    : network_(network),
      like_(like),
      fused_(network_, workspace_, like),
      blocks_(network.blocks.size()) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    convolutions_.emplace_back(network_, i, workspace_, like_);
  }
}

template <class T>
Tensor LayerStudent<T>::conv_weight(const Tensor& theta, size_t index) const {
  const Block& block = network_.blocks[index];
  const Ints sizes{network_.width, block.in_channels, 3, 3};
  return view(theta, block.weight.offset, sizes, contiguous_strides(sizes));
}

template <class T>
OptionalTensor LayerStudent<T>::conv_bias(const Tensor& theta, size_t index) const {
  if (network_.bias_is_inert()) return std::nullopt;
  const Block& block = network_.blocks[index];
  return vector_view(theta, block.bias.offset, block.bias.size);
}

template <class T>
OptionalTensor LayerStudent<T>::norm_parameters(const Tensor& theta, const Slice& slice,
                                                const Block& block, const char* name,
                                                size_t index) {
  if (slice.size == 0) return std::nullopt;
  const Tensor values = vector_view(theta, slice.offset, slice.size);
  if (!block.shape.elementwise) return values;
  Tensor permuted = workspace_.contiguous(name, index, {slice.size}, like_);
  copy_to_pixels_first(permuted, values, 1, network_.width, block.shape.pixels());
  return permuted;
}

template <class T>
Tensor LayerStudent<T>::classifier_weight(const Tensor& theta, const char* name) {
  const Slice& slice = network_.classifier_weight;
  Tensor permuted =
      workspace_.contiguous(name, 0, {network_.num_classes, network_.features}, like_);
  copy_to_pixels_first(permuted, vector_view(theta, slice.offset, slice.size), network_.num_classes,
                       network_.width, network_.feature_pixels);
  return permuted;
}

// [B, C, H, W] in channels-last as [B, H * W * C], and back.
template <class T>
Tensor LayerStudent<T>::features(const Tensor& activations) const {
  return view(activations, 0, {activations.size(0), network_.features}, {network_.features, 1});
}

template <class T>
Tensor LayerStudent<T>::activations(const Tensor& features, int64_t batch) const {
  const NormActPoolShape& shape = network_.blocks.back().shape;
  const Ints sizes{batch, network_.width, shape.out_height(), shape.out_width()};
  return view(features, 0, sizes, channels_last_strides(sizes));
}

template <class T>
void LayerStudent<T>::read_parameters(const StudentProblem& problem) {
  theta_ = problem.theta.tensor();
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    blocks_[i].weight = conv_weight(theta_, i);
    blocks_[i].norm_weight = norm_parameters(theta_, block.norm_weight, block, "norm_weight", i);
    blocks_[i].norm_bias = norm_parameters(theta_, block.norm_bias, block, "norm_bias", i);
  }
  head_ = classifier_weight(theta_, "head");
}

// Fills the blocks' states and returns the logits [B, K].
template <class T>
Tensor LayerStudent<T>::forward(const StudentProblem& problem) {
  const Device device(like_);
  read_parameters(problem);
  const int64_t batch = problem.batch();
  Tensor input = problem.images;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = network_.blocks[i].shape_of(batch);
    state.input = input;
    if (is_fused(i)) {
      input = fused_.forward(i, theta_, input);
      continue;
    }
    state.y = as_channels_last(
        convolution(input, state.weight, conv_bias(theta_, i), network_.blocks[i].padding));
    state.mean = workspace_.contiguous("mean", i, {batch, shape.groups}, like_);
    state.rstd = workspace_.contiguous("rstd", i, {batch, shape.groups}, like_);
    Tensor output = workspace_.channels_last(
        "output", i, {batch, shape.channels, shape.out_height(), shape.out_width()}, like_);
    run(NormActPoolForward<T>{shape, read<T>(state.y), read<T>(state.norm_weight),
                              read<T>(state.norm_bias), write<T>(output), write<T>(state.mean),
                              write<T>(state.rstd)},
        device);
    input = output;
  }
  last_ = input;
  const Slice& bias = network_.classifier_bias;
  return as_contiguous(linear(features(last_), head_, vector_view(theta_, bias.offset, bias.size)));
}

template <class T>
void LayerStudent<T>::write_classifier_gradient(const Tensor& grad_theta, const Tensor& weight,
                                                const Tensor& bias) {
  const Slice &w = network_.classifier_weight, &b = network_.classifier_bias;
  copy_to_channels_first(vector_view(grad_theta, w.offset, w.size), as_contiguous(weight),
                         network_.num_classes, network_.width, network_.feature_pixels);
  Tensor bias_place = vector_view(grad_theta, b.offset, b.size);
  copy(bias_place, bias);
}

template <class T>
Tensor LayerStudent<T>::conv_bias_place(const Tensor& grad_theta, size_t index) const {
  const Slice& slice = network_.blocks[index].bias;
  return vector_view(grad_theta, slice.offset, slice.size);
}

// Where the kernels write the gradient of a norm's parameters: straight into grad_theta, or into a
// workspace in their own order that finish_norm_gradient puts into the order of parameters.
template <class T>
Tensor LayerStudent<T>::norm_gradient(const Tensor& grad_theta, const Slice& slice,
                                      const Block& block, const char* name) {
  return block.shape.elementwise ? workspace_.contiguous(name, 0, {slice.size}, like_)
                                 : vector_view(grad_theta, slice.offset, slice.size);
}

template <class T>
void LayerStudent<T>::finish_norm_gradient(const Tensor& grad_theta, const Slice& slice,
                                           const Block& block, const Tensor& values) {
  if (!block.shape.elementwise) return;
  copy_to_channels_first(vector_view(grad_theta, slice.offset, slice.size), values, 1,
                         network_.width, block.shape.pixels());
}

template <class T>
void LayerStudent<T>::gradient(const StudentProblem& problem, const Tensor& loss,
                               const Tensor& grad_theta, const OptionalTensor& grad_images,
                               const OptionalTensor& grad_labels) {
  const Device device(like_);
  const int64_t batch = problem.batch(), classes = network_.num_classes;
  fuses_ = true;
  const Tensor logits = forward(problem);

  Tensor grad_logits = workspace_.contiguous("grad_logits", 0, {batch, classes}, like_);
  if (problem.loss == StudentLoss::kSumLogits) {
    fill(grad_logits, 1.0);
    Tensor result = loss;
    copy(result, sum_all(logits));
  } else {
    const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, logits);
    const Tensor rows = workspace_.contiguous("rows", 0, {batch}, like_);
    run(SoftCrossEntropyForward<T>{inputs, write<T>(rows), write<T>(loss)}, device);
    run(SoftCrossEntropyBackward<T>{inputs, write<T>(grad_logits), write<T>(grad_labels)}, device);
  }

  write_classifier_gradient(grad_theta, mm(transposed(grad_logits), features(last_)),
                            sum_over_rows(grad_logits));
  Tensor grad_output = activations(as_contiguous(mm(grad_logits, head_)), batch);
  for (size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    if (is_fused(i)) {
      const OptionalTensor grad_input =
          fused_.backward(i, theta_, grad_output, grad_theta, i > 0 || grad_images.has_value());
      if (i > 0) {
        grad_output = *grad_input;
      } else if (grad_images) {
        Tensor result = *grad_images;
        copy(result, *grad_input);
      }
      continue;
    }
    const NormActPoolShape shape = block.shape_of(batch);
    Tensor grad_y = workspace_.channels_last("grad_y", i, sizes_of(state.y), like_);
    const bool affine = state.norm_weight.has_value();
    OptionalTensor grad_weight, grad_bias, partial;
    if (affine) {
      grad_weight = norm_gradient(grad_theta, block.norm_weight, block, "grad_norm_weight");
      grad_bias = norm_gradient(grad_theta, block.norm_bias, block, "grad_norm_bias");
      partial = workspace_.contiguous("partial", 0, {batch, 2, shape.affine_size()}, like_);
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
    convolutions_[i].weight_gradient({{grad_y, state.input}}, conv_weight(grad_theta, i));
    convolutions_[i].bias_gradient(grad_y, conv_bias_place(grad_theta, i));
    if (i > 0) {
      grad_output = convolutions_[i].input_gradient({{grad_y, state.weight}});
    } else if (grad_images) {
      Tensor result = *grad_images;
      copy(result, convolutions_[i].input_gradient({{grad_y, state.weight}}));
    }
  }
}

// Fills the tangents in the blocks' states and returns the tangent of the logits.
template <class T>
Tensor LayerStudent<T>::forward_tangent(const StudentProblem& problem,
                                        const StudentTangents& tangents) {
  const Device device(like_);
  const int64_t batch = problem.batch();
  OptionalTensor input_tangent = tangents.images;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    const NormActPoolShape shape = block.shape_of(batch);
    state.input_tangent = input_tangent;
    if (is_fused(i)) {
      input_tangent = fused_.tangent(i, theta_, *tangents.theta, input_tangent);
      continue;
    }
    state.norm_weight_tangent = state.norm_bias_tangent = state.weight_tangent = std::nullopt;
    OptionalTensor bias_tangent;
    if (tangents.theta) {
      state.weight_tangent = conv_weight(*tangents.theta, i);
      bias_tangent = conv_bias(*tangents.theta, i);
      state.norm_weight_tangent =
          norm_parameters(*tangents.theta, block.norm_weight, block, "norm_weight_tangent", i);
      state.norm_bias_tangent =
          norm_parameters(*tangents.theta, block.norm_bias, block, "norm_bias_tangent", i);
    }
    state.y_tangent = convolutions_[i].tangent(state.input, input_tangent, state.weight,
                                               state.weight_tangent, bias_tangent);
    state.mean_tangent = workspace_.contiguous("mean_tangent", i, {batch, shape.groups}, like_);
    state.projection = workspace_.contiguous("projection", i, {batch, shape.groups}, like_);
    Tensor output = workspace_.channels_last(
        "output_tangent", i, {batch, shape.channels, shape.out_height(), shape.out_width()}, like_);
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
void LayerStudent<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                                   const Tensor& directional, const Tensor& grad_theta,
                                   const Tensor& grad_images, const OptionalTensor& grad_labels) {
  const Device device(like_);
  const int64_t batch = problem.batch(), classes = network_.num_classes;
  fuses_ = tangents.theta.has_value() && !tangents.images;
  const Tensor logits = forward(problem);
  const Tensor logits_tangent = forward_tangent(problem, tangents);

  Tensor grad_logits = workspace_.contiguous("grad_logits", 0, {batch, classes}, like_);
  Tensor grad_logits_tangent =
      workspace_.contiguous("grad_logits_tangent", 0, {batch, classes}, like_);
  if (problem.loss == StudentLoss::kSumLogits) {
    fill(grad_logits, 1.0);
    torch::stable::zero_(grad_logits_tangent);
    Tensor result = directional;
    copy(result, sum_all(logits_tangent));
  } else {
    const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, logits);
    const Tensor rows = workspace_.contiguous("rows", 0, {batch}, like_);
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
    if (is_fused(i)) {
      const auto [grad_input, grad_input_tangent] = fused_.backward_tangent(
          i, theta_, *tangents.theta, grad_output, grad_output_tangent, grad_theta);
      if (i > 0) grad_output = *grad_input;
      grad_output_tangent = grad_input_tangent;
      continue;
    }
    const NormActPoolShape shape = block.shape_of(batch);
    Tensor grad_y = workspace_.channels_last("grad_y", i, sizes_of(state.y), like_);
    Tensor grad_y_tangent = workspace_.channels_last("grad_y_tangent", i, sizes_of(state.y), like_);
    const bool affine = state.norm_weight.has_value();
    OptionalTensor grad_weight, grad_bias, partial;
    if (affine) {
      grad_weight = norm_gradient(grad_theta, block.norm_weight, block, "grad_norm_weight");
      grad_bias = norm_gradient(grad_theta, block.norm_bias, block, "grad_norm_bias");
      partial = workspace_.contiguous("partial", 0, {batch, 2, shape.affine_size()}, like_);
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

    ConvolutionPairs for_weight{{grad_y_tangent, state.input}};
    if (state.input_tangent) for_weight.push_back({grad_y, *state.input_tangent});
    convolutions_[i].weight_gradient(for_weight, conv_weight(grad_theta, i));
    convolutions_[i].bias_gradient(grad_y_tangent, conv_bias_place(grad_theta, i));
    if (i > 0) grad_output = convolutions_[i].input_gradient({{grad_y, state.weight}});
    ConvolutionPairs for_input{{grad_y_tangent, state.weight}};
    if (tangents.theta) for_input.push_back({grad_y, *state.weight_tangent});
    grad_output_tangent = convolutions_[i].input_gradient(for_input);
  }
  Tensor result = grad_images;
  copy(result, grad_output_tangent);
}

template class LayerStudent<float>;
template class LayerStudent<double>;

}  // namespace trajmatch
