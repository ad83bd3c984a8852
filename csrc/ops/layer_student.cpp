#include "ops/layer_student.h"

#include <type_traits>
#include <utility>

#include "ops/deep_block.h"
#include "ops/first_block.h"
#include "ops/library_layers.h"

namespace trajmatch {

template <class T>
LayerStudent<T>::LayerStudent(const Network& network, const Tensor& like, int64_t trajectories)
    : network_(network), call_(network_, like, trajectories) {
  const size_t nodes = network_.nodes.size();
  // library_ runs every call. fused_, if not empty, runs the calls that its blocks support; see
  // gradient_jvp.
  for (size_t i = 0; i < nodes; ++i) library_.push_back(library_layer<T>(call_, i));
  if (!std::is_same<T, float>::value || network_.blocks.empty()) return;
  bool any = false;
  for (size_t i = 0; i < network_.blocks.size(); ++i) {
    if (i == 0 && FirstBlock::takes(network_)) {
      fused_.push_back(std::make_unique<FirstBlock>(call_));
      any = true;
    } else if (i > 0 && DeepBlock::takes(network_, i)) {
      fused_.push_back(std::make_unique<DeepBlock>(call_, i));
      any = true;
    } else {
      // A block is two nodes, and fused layers may be mixed with layers of one node each.
      fused_.push_back(library_layer<T>(call_, 2 * i));
      fused_.push_back(library_layer<T>(call_, 2 * i + 1));
    }
  }
  if (!any) fused_.clear();
}

template <class T>
int64_t LayerStudent<T>::tape_size(const Network& network, int64_t batch, int64_t trajectories) {
  return layer_tape_size(network, batch, trajectories, std::is_same<T, float>::value);
}

template <class T>
Tensor LayerStudent<T>::logits(const Tensor& theta, const Tensor& images) {
  const Layers& layers = fused_.empty() ? library_ : fused_;
  call_.theta = theta;
  call_.begin(images, std::nullopt, false);
  begin(layers);
  for (const auto& layer : layers) layer->forward();
  run(classifier(), Device(call_.like));
  return call_.logits;
}

template <class T>
void LayerStudent<T>::gradient(const StudentProblem& problem, const OptionalTensor& loss,
                               const Tensor& grad_theta, const OptionalTensor& grad_images,
                               const OptionalTensor& grad_labels,
                               const std::optional<VectorPart>& tape,
                               const OptionalTensor& statistics) {
  const Layers& layers = fused_.empty() ? library_ : fused_;
  call_.theta = problem.theta.tensor();
  call_.theta_tangent = std::nullopt;
  call_.grad_theta = grad_theta;
  call_.wants_image_gradient = grad_images.has_value();
  call_.begin(problem.images, tape, false);
  begin(layers);
  for (const auto& layer : layers) layer->forward();
  if (statistics) write_statistics(*statistics);
  write_loss(problem, loss, grad_labels);
  backward(layers);
  if (!grad_images) return;
  Tensor result = *grad_images;
  copy(result, call_.values[0].grad);
}

template <class T>
void LayerStudent<T>::gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                                   const Tensor& directional, const Tensor& grad_theta,
                                   const Tensor& grad_images, const OptionalTensor& grad_labels,
                                   const std::optional<VectorPart>& tape) {
  // The fused blocks only have tangents along theta.
  const bool fuses = !fused_.empty() && tangents.theta && !tangents.images;
  const Layers& layers = fuses ? fused_ : library_;
  call_.theta = problem.theta.tensor();
  call_.theta_tangent = tangents.theta;
  call_.grad_theta = grad_theta;
  call_.wants_image_gradient = false;
  call_.begin(problem.images, tape, true);
  call_.values[0].tangent = tangents.images;
  begin(layers);
  if (!tape) {
    for (const auto& layer : layers) layer->forward();
  }
  for (const auto& layer : layers) layer->tangent();
  write_directional(problem, tangents, directional, grad_labels);
  backward(layers);
  Tensor result = grad_images;
  copy(result, call_.values[0].grad_tangent);
}

template <class T>
void LayerStudent<T>::begin(const Layers& layers) {
  call_.runs_fused = &layers == &fused_;
  for (const auto& layer : layers) layer->begin();
  call_.pack_weights();
}

template <class T>
ClassifierForward<T> LayerStudent<T>::classifier() {
  return {classifier_shape(),
          1,
          {{read<T>(call_.values.back().data), classifier_weight(call_.theta)}},
          read<T>(call_.theta) + network_.classifier_bias.offset,
          write<T>(call_.logits)};
}

// Starts from the gradient in the logits and, in gradient_jvp, its tangent.
template <class T>
void LayerStudent<T>::backward(const Layers& layers) {
  const ClassifierShape shape = classifier_shape();
  const Value& features = call_.values.back();
  const size_t value = call_.values.size() - 1;
  const T* const grad = read<T>(call_.grad_logits);
  const T* const weight = classifier_weight(call_.theta);
  ClassifierBackward<T> both{{},
                             0,
                             {shape,
                              1,
                              {{grad, read<T>(features.data)}},
                              write<T>(call_.grad_theta) + network_.classifier_weight.offset,
                              write<T>(call_.grad_theta) + network_.classifier_bias.offset}};
  OptionalTensor of_features, of_features_tangent;
  // A tape already holds the gradient in the features.
  if (!(call_.is_jvp && call_.has_tape)) {
    of_features = call_.grad_place(value);
    both.input[both.inputs++] = {shape, 1, {{grad, weight}}, write<T>(of_features)};
  }
  if (call_.is_jvp) {
    const T* const grad_tangent = read<T>(grad_logits_tangent_);
    // The first term also gives the gradient of the bias, so it must be the one with the tangent.
    both.weight.terms = 2;
    both.weight.term[0] = {grad_tangent, read<T>(features.data)};
    both.weight.term[1] = {grad, read<T>(features.tangent)};
    of_features_tangent = call_.grad_tangent_place(value);
    ClassifierInputGradient<T>& through = both.input[both.inputs++];
    through = {shape, 1, {{grad_tangent, weight}}, write<T>(of_features_tangent)};
    if (call_.theta_tangent) {
      through.term[through.terms++] = {grad, classifier_weight(*call_.theta_tangent)};
    }
  }
  run(both, Device(call_.like));
  if (of_features) call_.add_grad(value, *of_features);
  if (of_features_tangent) call_.add_grad_tangent(value, *of_features_tangent);
  for (size_t i = layers.size(); i-- > 0;) layers[i]->backward();
  call_.add_shares();
}

template <class T>
void LayerStudent<T>::write_statistics(const Tensor& statistics) const {
  // For each trajectory rows mean, rstd and count, each with the channels of all batch norms one
  // after the other.
  const int64_t row = network_.batch_norm_channels, trajectories = call_.trajectories;
  int64_t at = 0;
  for (size_t i = 0; i < network_.nodes.size(); ++i) {
    const NormActPoolNode& norm = network_.nodes[i].norm;
    if (!norm.shape.over_batch) continue;
    const int64_t channels = norm.shape.channels;
    const auto part = [&](int64_t of) {
      return view(statistics, of * row + at, {trajectories, channels}, {3 * row, 1});
    };
    Tensor mean = part(0), rstd = part(1), count = part(2);
    const Value& value = call_.values[i + 1];
    copy(mean, view(value.mean, 0, {trajectories, channels}, {channels, 1}));
    copy(rstd, view(value.rstd, 0, {trajectories, channels}, {channels, 1}));
    fill(count, static_cast<double>(norm.values(call_.batch)));
    at += channels;
  }
}

// Returns the place where a kernel adds up the shares `rows` of a loss: `sums` [K] on the CPU. On
// CUDA there is none, because add_shares adds up the shares of losses too.
template <class T>
T* LayerStudent<T>::rows_sum(const Tensor& rows, const Tensor& sums) {
  T* const to = write<T>(sums);
  if (!on_cuda(call_.like)) return to;
  call_.sum_later(ShareSum<T>{read<T>(rows), to, call_.batch, 1, 1, call_.batch, 1});
  return nullptr;
}

// Writes the sum of all logits, or of their tangents, of each trajectory.
template <class T>
void LayerStudent<T>::write_sums(const Tensor& logits, const Tensor& sums) const {
  const int64_t trajectories = call_.trajectories, size = logits.numel() / trajectories;
  Tensor to = vector_view(sums, 0, trajectories);
  copy(to, sum_over_rows(view(logits, 0, {size, trajectories}, {1, size})));
}

template <class T>
SoftCrossEntropyInputs<T> LayerStudent<T>::loss_inputs(const StudentProblem& problem) const {
  const bool soft = problem.soft_labels();
  return {call_.batch,
          network_.num_classes,
          problem.scale,
          nullptr,
          read<T>(call_.logits),
          soft ? nullptr : read<int64_t>(problem.labels),
          soft ? read<T>(problem.labels) : nullptr,
          problem.loss,
          call_.trajectories};
}

// Writes the logits, the gradient in them and, if wanted, the loss and the gradient in the labels.
template <class T>
void LayerStudent<T>::write_loss(const StudentProblem& problem, const OptionalTensor& loss,
                                 const OptionalTensor& grad_labels) {
  const Device device(call_.like);
  if (problem.loss == StudentLoss::kSumLogits) {
    run(classifier(), device);
    fill(call_.grad_logits, 1.0);
    if (loss) write_sums(call_.logits, *loss);
    return;
  }
  const SoftCrossEntropyInputs<T> inputs = loss_inputs(problem);
  run(
      ClassifierLoss<T, SoftCrossEntropyBackward<T>>{
          classifier(), {inputs, write<T>(call_.grad_logits), write<T>(grad_labels)}},
      device);
  if (!loss) return;
  const Tensor each = call_.workspace.contiguous("rows", 0, {call_.images()}, call_.like);
  run(SoftCrossEntropyForward<T>{inputs, write<T>(each), rows_sum(each, *loss)}, device);
}

// Writes the tangents of the logits, of the loss, and of the gradients in the logits and the
// labels. Writes the gradient in the logits too, and the logits if the loss
// needs them, unless they are on a tape.
template <class T>
void LayerStudent<T>::write_directional(const StudentProblem& problem,
                                        const StudentTangents& tangents, const Tensor& directional,
                                        const OptionalTensor& grad_labels) {
  const Device device(call_.like);
  const Value& features = call_.values.back();
  logits_tangent_ = rows("logits_tangent");
  grad_logits_tangent_ = rows("grad_logits_tangent");
  ClassifierForward<T> of_logits{classifier_shape(),
                                 1,
                                 {{read<T>(features.tangent), classifier_weight(call_.theta)}},
                                 nullptr,
                                 write<T>(logits_tangent_)};
  if (tangents.theta) {
    of_logits.term[of_logits.terms++] = {read<T>(features.data),
                                         classifier_weight(*tangents.theta)};
    of_logits.bias = read<T>(*tangents.theta) + network_.classifier_bias.offset;
  }
  if (problem.loss == StudentLoss::kSumLogits) {
    run(of_logits, device);
    if (!call_.has_tape) fill(call_.grad_logits, 1.0);
    torch::stable::zero_(grad_logits_tangent_);
    write_sums(logits_tangent_, directional);
    return;
  }
  const SoftCrossEntropyInputs<T> inputs = loss_inputs(problem);
  const Tensor each = call_.workspace.contiguous("rows", 0, {call_.images()}, call_.like);
  if (!call_.has_tape) {
    run(
        ClassifierLoss<T, SoftCrossEntropyBackward<T>>{
            classifier(), {inputs, write<T>(call_.grad_logits), nullptr}},
        device);
  }
  run(
      ClassifierLoss<T, SoftCrossEntropyBackwardTangent<T>>{
          of_logits,
          {inputs, read<T>(logits_tangent_), read<T>(tangents.labels), write<T>(each),
           rows_sum(each, directional), write<T>(grad_logits_tangent_), write<T>(grad_labels)}},
      device);
}

template class LayerStudent<float>;
template class LayerStudent<double>;

}  // namespace trajmatch
