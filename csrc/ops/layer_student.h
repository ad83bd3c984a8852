// The student engine layer by layer, a whole batch at a time: the gradient of a network's loss in
// its flat parameters, and the directional derivative of that gradient, as one walk over the
// network. So CUDA runs every network, and the CPU those that are no chain of 3x3 convolutions.
// Activations are in channels-last.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/classifier.h"
#include "ops/layer.h"
#include "ops/run.h"
#include "ops/student_problem.h"

namespace trajmatch {

template <class T>
class LayerStudent {
 public:
  LayerStudent(const Network& network, const Tensor& like);

  // Elements of the tape of a batch: all that gradient computes and gradient_jvp reads again. With
  // it the latter walks forward and backward along the tangents alone.
  static int64_t tape_size(const Network& network, int64_t batch);

  // The logits [B, K] of images [B, C, H, W] (channels-last) for parameters [P].
  Tensor logits(const Tensor& theta, const Tensor& images);

  // Writes the loss [] and its gradient [P]; the gradients of images [B, C, H, W] (channels-last)
  // and of soft labels [B, K], the tape, and the statistics of norms over the batch [3, channels]
  // (mean, rstd, number of values), where wanted.
  void gradient(const StudentProblem& problem, const Tensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                const std::optional<VectorPart>& tape,
                const OptionalTensor& statistics = std::nullopt);

  // Derivatives along the tangents of: the loss (one element), the gradient in theta [P], in the
  // images [B, C, H, W] (channels-last), and, where wanted, in the soft labels [B, K]. A tape is
  // that of gradient for the same problem; the tangents are then theta's alone.
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const Tensor& directional, const Tensor& grad_theta, const Tensor& grad_images,
                    const OptionalTensor& grad_labels, const std::optional<VectorPart>& tape);

 private:
  using Layers = std::vector<std::unique_ptr<Layer>>;

  // Run forward all layers and the classifier.
  void forward(const Layers& layers);
  void backward(const Layers& layers);
  void write_loss(const StudentProblem& problem, const Tensor& loss,
                  const OptionalTensor& grad_labels);
  void write_directional(const StudentProblem& problem, const StudentTangents& tangents,
                         const Tensor& directional, const OptionalTensor& grad_labels);
  void write_statistics(const Tensor& statistics) const;
  SoftCrossEntropyInputs<T> loss_inputs(const StudentProblem& problem) const;
  Tensor rows(const char* name) {
    return call_.workspace.contiguous(name, 0, {call_.batch, network_.num_classes}, call_.like);
  }

  ClassifierShape classifier_shape() const {
    return {call_.batch, network_.num_classes, network_.width, network_.feature_pixels};
  }
  const T* classifier_weight(const Tensor& theta) const {
    return read<T>(theta) + network_.classifier_weight.offset;
  }

  const Network network_;
  LayerCall call_;
  Layers library_, fused_;  // fused_ is empty where no block is
  Tensor logits_tangent_, grad_logits_tangent_;
};

extern template class LayerStudent<float>;
extern template class LayerStudent<double>;

}  // namespace trajmatch
