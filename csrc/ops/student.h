// The student engine where the tensors are: a ConvNet image by image through the whole network on
// the CPU (core/student.h), on CUDA and others layer by layer (ops/layer_student.h).
#pragma once

#include <optional>

#include "core/student.h"
#include "ops/layer_student.h"
#include "ops/student_problem.h"

namespace trajmatch {

template <class T>
class Student {
 public:
  Student(const Network& network, const Tensor& like);

  // Elements of the tape of a batch: what gradient can keep for the gradient_jvp of the same batch
  // and parameters.
  int64_t tape_size(int64_t batch) const;
  static int64_t tape_size(const Network& network, int64_t batch, bool cuda);

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
  // images [B, C, H, W] (channels-last), and, where wanted, in the soft labels [B, K].
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const VectorPart& directional, const Tensor& grad_theta,
                    const Tensor& grad_images, const OptionalTensor& grad_labels,
                    const std::optional<VectorPart>& tape);

 private:
  // A call of the CPU engine on a batch.
  StudentCall<T> call_on(const Tensor& images, const T* theta) const;
  StudentCall<T> call_on(const StudentProblem& problem) const;

  Network network_;
  std::optional<LayerStudent<T>> layers_;
};

extern template class Student<float>;
extern template class Student<double>;

// A vector for tapes, whose memory is kept for the next one when it is freed.
Tensor empty_tape(int64_t elements, const Tensor& like);

// Frees the memory that is kept from call to call: the calling thread's, and that of tapes.
void release_student_memory();

}  // namespace trajmatch
