#include "ops/layer_student.h"

#include <string>
#include <type_traits>
#include <utility>

namespace trajmatch {

namespace {

// Elements with those behind them before the next place where 16 bytes may be read at once.
int64_t aligned(int64_t elements) { return (elements + 3) / 4 * 4; }

template <class T>
SoftCrossEntropyInputs<T> loss_inputs(const StudentProblem& problem, const Tensor& logits) {
  const bool soft = problem.soft_labels();
  return {logits.size(0),
          logits.size(1),
          problem.scale,
          nullptr,
          read<T>(logits),
          soft ? nullptr : read<int64_t>(problem.labels),
          soft ? read<T>(problem.labels) : nullptr,
          problem.loss};
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
Tensor LayerStudent<T>::conv_weight_place(const Tensor& theta, size_t index) const {
  const Block& block = network_.blocks[index];
  const Ints sizes{block.shape.channels, block.in_channels, block.kernel, block.kernel};
  return view(theta, block.weight.offset, sizes, contiguous_strides(sizes));
}

// A convolution's in channels-last, as the library would have it for each of its calls otherwise.
template <class T>
Tensor LayerStudent<T>::conv_weight(const Tensor& theta, const char* name, size_t index) {
  const Tensor place = conv_weight_place(theta, index);
  if (network_.blocks[index].is_linear()) return place;
  Tensor weight = workspace_.channels_last(name, index, sizes_of(place), like_);
  copy(weight, place);
  return weight;
}

template <class T>
OptionalTensor LayerStudent<T>::conv_bias(const Tensor& theta, size_t index) const {
  const Block& block = network_.blocks[index];
  if (block.bias_is_inert() || !block.convolves()) return std::nullopt;
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
  copy_to_pixels_first(permuted, values, 1, block.shape.channels, block.shape.pixels());
  return permuted;
}

template <class T>
ClassifierShape LayerStudent<T>::classifier_shape() const {
  return {batch_, network_.num_classes, network_.width, network_.feature_pixels};
}

template <class T>
const T* LayerStudent<T>::classifier_weight(const Tensor& theta) const {
  return read<T>(theta) + network_.classifier_weight.offset;
}

template <class T>
const T* LayerStudent<T>::classifier_bias(const Tensor& theta) const {
  return read<T>(theta) + network_.classifier_bias.offset;
}

template <class T>
template <class Visit>
void LayerStudent<T>::each_kept(const Network& network, int64_t batch, Kept& kept,
                                const Visit& visit) {
  const bool float32 = std::is_same<T, float>::value;
  kept.blocks.resize(network.blocks.size());
  for (size_t i = 0; i < network.blocks.size(); ++i) {
    const NormActPoolShape& shape = network.blocks[i].shape;
    const Ints output{batch, shape.channels, shape.out_height(), shape.out_width()};
    KeptBlock& block = kept.blocks[i];
    if (i > 0 || !FusedBlocks::takes_first(network, float32)) {
      visit("y", i, block.y, Ints{batch, shape.channels, shape.height, shape.width});
    }
    visit("mean", i, block.mean, Ints{batch, shape.groups});
    visit("rstd", i, block.rstd, Ints{batch, shape.groups});
    visit("output", i, block.output, output);
    visit("grad_output", i, block.grad_output, output);
  }
  visit("logits", 0, kept.logits, Ints{batch, network.num_classes});
  visit("grad_logits", 0, kept.grad_logits, Ints{batch, network.num_classes});
}

template <class T>
int64_t LayerStudent<T>::tape_size(const Network& network, int64_t batch) {
  Kept nowhere;
  int64_t size = 0;
  each_kept(network, batch, nowhere, [&](const char*, size_t, Tensor&, const Ints& sizes) {
    size += aligned(product_of(sizes));
  });
  return size;
}

// Whether, without a tape, a member is a tensor that a library or the block above makes.
template <class T>
bool LayerStudent<T>::comes_by_itself(const Tensor& member, size_t index) const {
  const KeptBlock& block = kept_.blocks[index];
  return (&member == &block.y && !is_fused(index)) ||
         (&member == &block.grad_output && index + 1 < blocks_.size());
}

// What this call works on, and where it keeps what it finds; on a new tape, also what nobody
// writes.
template <class T>
void LayerStudent<T>::begin(const StudentProblem& problem, const std::optional<VectorPart>& tape,
                            bool is_new) {
  batch_ = problem.batch();
  theta_ = problem.theta.tensor();
  has_tape_ = tape.has_value();
  int64_t at = tape ? tape->begin : 0;
  each_kept(network_, batch_, kept_,
            [&](const char* name, size_t index, Tensor& member, const Ints& sizes) {
              const bool image = sizes.size() == 4;
              if (tape) {
                const Ints strides =
                    image ? channels_last_strides(sizes) : contiguous_strides(sizes);
                member = view(tape->base, at, sizes, strides);
                const int64_t size = product_of(sizes), gap = aligned(size) - size;
                if (is_new && gap > 0) {
                  Tensor unused = vector_view(tape->base, at + size, gap);
                  torch::stable::zero_(unused);
                }
                at += size + gap;
              } else if (comes_by_itself(member, index)) {
                member = Tensor();
              } else if (image) {
                member = workspace_.channels_last(name, index, sizes, like_);
              } else {
                member = workspace_.contiguous(name, index, sizes, like_);
              }
            });
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    state.input = i == 0 ? problem.images : kept_.blocks[i - 1].output;
    if (is_fused(i)) continue;
    state.weight = conv_weight(theta_, "weight", i);
    state.norm_weight = norm_parameters(theta_, block.norm_weight, block, "norm_weight", i);
    state.norm_bias = norm_parameters(theta_, block.norm_bias, block, "norm_bias", i);
  }
}

// What a library has computed, where it is to be kept.
template <class T>
void LayerStudent<T>::put(Tensor& kept, const Tensor& computed) const {
  if (has_tape_) {
    copy(kept, computed);
  } else {
    kept = as_channels_last(computed);
  }
}

// Fills what is kept, but for the gradients.
template <class T>
void LayerStudent<T>::forward() {
  const Device device(like_);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const BlockState& state = blocks_[i];
    KeptBlock& kept = kept_.blocks[i];
    if (is_fused(i)) {
      fused_.begin(i, theta_, state.input, kept);
      fused_.forward(i, theta_);
      continue;
    }
    put(kept.y, convolutions_[i].forward(state.input, state.weight, conv_bias(theta_, i)));
    run(NormActPoolForward<T>{network_.blocks[i].shape_of(batch_), read<T>(kept.y),
                              read<T>(state.norm_weight), read<T>(state.norm_bias),
                              write<T>(kept.output), write<T>(kept.mean), write<T>(kept.rstd)},
        device);
  }
  run(ClassifierForward<T>{classifier_shape(),
                           1,
                           {{read<T>(kept_.blocks.back().output), classifier_weight(theta_)}},
                           classifier_bias(theta_),
                           write<T>(kept_.logits)},
      device);
}

template <class T>
Tensor LayerStudent<T>::conv_bias_place(const Tensor& grad_theta, size_t index) const {
  const Slice& slice = network_.blocks[index].bias;
  return vector_view(grad_theta, slice.offset, slice.size);
}

// Where the kernels write the gradients of a norm's parameters: straight into grad_theta, or into a
// workspace in their own order that finish_norm_gradients puts into the order of parameters.
template <class T>
auto LayerStudent<T>::norm_gradients(const Tensor& grad_theta, size_t index) -> NormGradients {
  if (!blocks_[index].norm_weight) return {};
  const Block& block = network_.blocks[index];
  const auto place = [&](const Slice& slice, const char* name) {
    return block.shape.elementwise ? workspace_.contiguous(name, 0, {slice.size}, like_)
                                   : vector_view(grad_theta, slice.offset, slice.size);
  };
  const int64_t parameters = block.shape_of(batch_).affine_size();
  return {place(block.norm_weight, "grad_norm_weight"), place(block.norm_bias, "grad_norm_bias"),
          workspace_.contiguous("partial", 0, {batch_, 2, parameters}, like_)};
}

template <class T>
void LayerStudent<T>::finish_norm_gradients(const Tensor& grad_theta, size_t index,
                                            const NormGradients& gradients) {
  const Block& block = network_.blocks[index];
  if (!gradients.weight || !block.shape.elementwise) return;
  const auto finish = [&](const Slice& slice, const Tensor& values) {
    copy_to_channels_first(vector_view(grad_theta, slice.offset, slice.size), values, 1,
                           block.shape.channels, block.shape.pixels());
  };
  finish(block.norm_weight, *gradients.weight);
  finish(block.norm_bias, *gradients.bias);
}

// The loss and the gradient in the logits, where it is kept.
template <class T>
void LayerStudent<T>::write_loss(const StudentProblem& problem, const Tensor& loss,
                                 const OptionalTensor& grad_labels) {
  const Device device(like_);
  if (problem.loss == StudentLoss::kSumLogits) {
    fill(kept_.grad_logits, 1.0);
    Tensor result = loss;
    copy(result, sum_all(kept_.logits));
    return;
  }
  const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, kept_.logits);
  const Tensor rows = workspace_.contiguous("rows", 0, {batch_}, like_);
  run(SoftCrossEntropyForward<T>{inputs, write<T>(rows), write<T>(loss)}, device);
  run(SoftCrossEntropyBackward<T>{inputs, write<T>(kept_.grad_logits), write<T>(grad_labels)},
      device);
}

// The gradient in the last block's output.
template <class T>
void LayerStudent<T>::classifier_backward() {
  run(ClassifierInputGradient<T>{classifier_shape(),
                                 1,
                                 {{read<T>(kept_.grad_logits), classifier_weight(theta_)}},
                                 write<T>(kept_.blocks.back().grad_output)},
      Device(like_));
}

template <class T>
void LayerStudent<T>::gradient(const StudentProblem& problem, const Tensor& loss,
                               const Tensor& grad_theta, const OptionalTensor& grad_images,
                               const OptionalTensor& grad_labels,
                               const std::optional<VectorPart>& tape) {
  const Device device(like_);
  fuses_ = true;
  begin(problem, tape, true);
  forward();
  write_loss(problem, loss, grad_labels);

  run(ClassifierWeightGradient<T>{classifier_shape(),
                                  1,
                                  {{read<T>(kept_.grad_logits),
                                    read<T>(kept_.blocks.back().output)}},
                                  write<T>(grad_theta) + network_.classifier_weight.offset,
                                  write<T>(grad_theta) + network_.classifier_bias.offset},
      device);
  classifier_backward();
  for (size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    const BlockState& state = blocks_[i];
    const KeptBlock& kept = kept_.blocks[i];
    OptionalTensor grad_input;
    if (is_fused(i)) {
      grad_input = fused_.backward(i, theta_, kept.grad_output, grad_theta,
                                   i > 0 || grad_images.has_value());
    } else {
      const NormActPoolShape shape = block.shape_of(batch_);
      const Tensor grad_y = workspace_.channels_last("grad_y", i, sizes_of(kept.y), like_);
      const NormGradients norm = norm_gradients(grad_theta, i);
      run(NormActPoolBackward<T>{shape, read<T>(kept.y), read<T>(state.norm_weight),
                                 read<T>(state.norm_bias), read<T>(kept.mean), read<T>(kept.rstd),
                                 read<T>(kept.grad_output), write<T>(grad_y),
                                 write<T>(norm.partial), write<T>(norm.weight),
                                 write<T>(norm.bias)},
          device);
      finish_norm_gradients(grad_theta, i, norm);
      convolutions_[i].weight_gradient({{grad_y, state.input}}, conv_weight_place(grad_theta, i));
      convolutions_[i].bias_gradient(grad_y, conv_bias_place(grad_theta, i));
      if (i > 0 || grad_images) {
        grad_input = convolutions_[i].input_gradient({{grad_y, state.weight}});
      }
    }
    if (i > 0) {
      put(kept_.blocks[i - 1].grad_output, *grad_input);
    } else if (grad_images) {
      Tensor result = *grad_images;
      copy(result, *grad_input);
    }
  }
}

// Fills the tangents in the blocks' states and returns the tangent of the logits.
template <class T>
Tensor LayerStudent<T>::forward_tangent(const StudentTangents& tangents) {
  const Device device(like_);
  OptionalTensor input_tangent = tangents.images;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = network_.blocks[i];
    BlockState& state = blocks_[i];
    const KeptBlock& kept = kept_.blocks[i];
    const NormActPoolShape shape = block.shape_of(batch_);
    state.input_tangent = input_tangent;
    if (is_fused(i)) {
      input_tangent = fused_.tangent(i, theta_, *tangents.theta, input_tangent);
      continue;
    }
    state.norm_weight_tangent = state.norm_bias_tangent = state.weight_tangent = std::nullopt;
    OptionalTensor bias_tangent;
    if (tangents.theta) {
      state.weight_tangent = conv_weight(*tangents.theta, "weight_tangent", i);
      bias_tangent = conv_bias(*tangents.theta, i);
      state.norm_weight_tangent =
          norm_parameters(*tangents.theta, block.norm_weight, block, "norm_weight_tangent", i);
      state.norm_bias_tangent =
          norm_parameters(*tangents.theta, block.norm_bias, block, "norm_bias_tangent", i);
    }
    state.y_tangent = convolutions_[i].tangent(state.input, input_tangent, state.weight,
                                               state.weight_tangent, bias_tangent);
    state.mean_tangent = workspace_.contiguous("mean_tangent", i, {batch_, shape.groups}, like_);
    state.projection = workspace_.contiguous("projection", i, {batch_, shape.groups}, like_);
    Tensor output = workspace_.channels_last(
        "output_tangent", i, {batch_, shape.channels, shape.out_height(), shape.out_width()},
        like_);
    run(NormActPoolTangent<T>{shape, read<T>(kept.y), read<T>(state.norm_weight),
                              read<T>(state.norm_bias), read<T>(kept.mean), read<T>(kept.rstd),
                              read<T>(state.y_tangent), read<T>(state.norm_weight_tangent),
                              read<T>(state.norm_bias_tangent), write<T>(output),
                              write<T>(state.mean_tangent), write<T>(state.projection)},
        device);
    input_tangent = output;
  }
  last_tangent_ = *input_tangent;
  const Tensor logits_tangent =
      workspace_.contiguous("logits_tangent", 0, {batch_, network_.num_classes}, like_);
  ClassifierForward<T> params{classifier_shape(),
                              1,
                              {{read<T>(last_tangent_), classifier_weight(theta_)}},
                              nullptr,
                              write<T>(logits_tangent)};
  if (tangents.theta) {
    params.term[params.terms++] = {read<T>(kept_.blocks.back().output),
                                   classifier_weight(*tangents.theta)};
    params.bias = classifier_bias(*tangents.theta);
  }
  run(params, device);
  return logits_tangent;
}

template <class T>
void LayerStudent<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                                   const Tensor& directional, const Tensor& grad_theta,
                                   const Tensor& grad_images, const OptionalTensor& grad_labels,
                                   const std::optional<VectorPart>& tape) {
  const Device device(like_);
  fuses_ = tangents.theta.has_value() && !tangents.images;
  begin(problem, tape, false);
  if (tape) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (is_fused(i)) fused_.begin(i, theta_, blocks_[i].input, kept_.blocks[i]);
    }
  } else {
    forward();
  }
  const Tensor logits_tangent = forward_tangent(tangents);

  const Tensor grad_logits_tangent =
      workspace_.contiguous("grad_logits_tangent", 0, {batch_, network_.num_classes}, like_);
  if (problem.loss == StudentLoss::kSumLogits) {
    if (!tape) fill(kept_.grad_logits, 1.0);
    Tensor zeros = grad_logits_tangent, result = directional;
    torch::stable::zero_(zeros);
    copy(result, sum_all(logits_tangent));
  } else {
    const SoftCrossEntropyInputs<T> inputs = loss_inputs<T>(problem, kept_.logits);
    const Tensor rows = workspace_.contiguous("rows", 0, {batch_}, like_);
    if (!tape) {
      run(SoftCrossEntropyBackward<T>{inputs, write<T>(kept_.grad_logits), nullptr}, device);
    }
    run(SoftCrossEntropyBackwardTangent<T>{inputs, read<T>(logits_tangent),
                                           read<T>(tangents.labels), write<T>(rows),
                                           write<T>(directional), write<T>(grad_logits_tangent),
                                           write<T>(grad_labels)},
        device);
  }

  run(ClassifierWeightGradient<T>{classifier_shape(),
                                  2,
                                  {{read<T>(grad_logits_tangent),
                                    read<T>(kept_.blocks.back().output)},
                                   {read<T>(kept_.grad_logits), read<T>(last_tangent_)}},
                                  write<T>(grad_theta) + network_.classifier_weight.offset,
                                  write<T>(grad_theta) + network_.classifier_bias.offset},
      device);
  if (!tape) classifier_backward();
  Tensor grad_output_tangent = workspace_.channels_last(
      "grad_output_tangent", 0, sizes_of(kept_.blocks.back().output), like_);
  ClassifierInputGradient<T> through{classifier_shape(),
                                     1,
                                     {{read<T>(grad_logits_tangent), classifier_weight(theta_)}},
                                     write<T>(grad_output_tangent)};
  if (tangents.theta) {
    through.term[through.terms++] = {read<T>(kept_.grad_logits),
                                     classifier_weight(*tangents.theta)};
  }
  run(through, device);

  for (size_t i = blocks_.size(); i-- > 0;) {
    const Block& block = network_.blocks[i];
    const BlockState& state = blocks_[i];
    const KeptBlock& kept = kept_.blocks[i];
    const bool wants_input = i > 0 && !tape;
    if (is_fused(i)) {
      const auto [grad_input, grad_input_tangent] =
          fused_.backward_tangent(i, theta_, *tangents.theta, kept.grad_output, grad_output_tangent,
                                  grad_theta, wants_input);
      if (wants_input) kept_.blocks[i - 1].grad_output = *grad_input;
      grad_output_tangent = grad_input_tangent;
      continue;
    }
    const NormActPoolShape shape = block.shape_of(batch_);
    const Tensor grad_y = workspace_.channels_last("grad_y", i, sizes_of(kept.y), like_);
    const Tensor grad_y_tangent =
        workspace_.channels_last("grad_y_tangent", i, sizes_of(kept.y), like_);
    const NormGradients norm = norm_gradients(grad_theta, i);
    run(
        NormActPoolBackwardTangent<T>{
            shape, read<T>(kept.y), read<T>(state.norm_weight), read<T>(state.norm_bias),
            read<T>(kept.mean), read<T>(kept.rstd), read<T>(state.y_tangent),
            read<T>(state.norm_weight_tangent), read<T>(state.norm_bias_tangent),
            read<T>(state.mean_tangent), read<T>(state.projection), read<T>(kept.grad_output),
            read<T>(grad_output_tangent), write<T>(grad_y), write<T>(grad_y_tangent),
            write<T>(norm.partial), write<T>(norm.weight), write<T>(norm.bias)},
        device);
    finish_norm_gradients(grad_theta, i, norm);

    ConvolutionPairs for_weight{{grad_y_tangent, state.input}};
    if (state.input_tangent) for_weight.push_back({grad_y, *state.input_tangent});
    convolutions_[i].weight_gradient(for_weight, conv_weight_place(grad_theta, i));
    convolutions_[i].bias_gradient(grad_y_tangent, conv_bias_place(grad_theta, i));
    if (wants_input) {
      put(kept_.blocks[i - 1].grad_output,
          convolutions_[i].input_gradient({{grad_y, state.weight}}));
    }
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
