// The student engine that works layer by layer on a whole batch: the gradient of the loss of a
// network in its flat parameters, and the directional derivative of that gradient. CUDA runs every
// network this way; the CPU runs the networks that are not a chain of 3x3 convolutions this way.
// Activations are channels-last. On CUDA a call may have K trajectories: students that are
// differentiated side by side, each with its own parameters and images. The CPU has one.
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
  LayerStudent(const Network& network, const Tensor& like, int64_t trajectories);

  // Number of elements in the tape of a batch of each trajectory: everything that gradient computes
  // and gradient_jvp reads again. With a tape, gradient_jvp runs forward and backward along the
  // tangents only.
  static int64_t tape_size(const Network& network, int64_t batch, int64_t trajectories);

  // See Student (ops/student.h) for these three.
  Tensor logits(const Tensor& theta, const Tensor& images);
  void gradient(const StudentProblem& problem, const OptionalTensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                const std::optional<VectorPart>& tape,
                const OptionalTensor& statistics = std::nullopt);

  // A tape must come from gradient for the same problem, and then only theta may have a tangent.
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const Tensor& directional, const Tensor& grad_theta, const Tensor& grad_images,
                    const OptionalTensor& grad_labels, const std::optional<VectorPart>& tape);

 private:
  using Layers = std::vector<std::unique_ptr<Layer>>;

  void begin(const Layers& layers);
  // The last operation of the forward pass, which writes the logits.
  ClassifierForward<T> classifier();
  void backward(const Layers& layers);
  void write_loss(const StudentProblem& problem, const OptionalTensor& loss,
                  const OptionalTensor& grad_labels);
  void write_directional(const StudentProblem& problem, const StudentTangents& tangents,
                         const Tensor& directional, const OptionalTensor& grad_labels);
  T* rows_sum(const Tensor& rows, const Tensor& sums);
  void write_sums(const Tensor& logits, const Tensor& sums) const;
  void write_statistics(const Tensor& statistics) const;
  SoftCrossEntropyInputs<T> loss_inputs(const StudentProblem& problem) const;
  Tensor rows(const char* name) {
    return call_.workspace.contiguous(name, 0, {call_.images(), network_.num_classes}, call_.like);
  }

  ClassifierShape classifier_shape() const {
    return {call_.batch,        network_.num_classes,   network_.width, network_.feature_pixels,
            call_.trajectories, network_.num_parameters};
  }
  const T* classifier_weight(const Tensor& theta) const {
    return read<T>(theta) + network_.classifier_weight.offset;
  }

  const Network network_;
  LayerCall call_;
  Layers library_, fused_;  // fused_ is empty if no block is fused
  Tensor logits_tangent_, grad_logits_tangent_;
};

extern template class LayerStudent<float>;
extern template class LayerStudent<double>;

}  // namespace trajmatch
