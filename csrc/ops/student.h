// The student engine on the device of its tensors. On the CPU a ConvNet runs a few images at a time
// through the whole network (core/student.h). Other networks, and all networks on CUDA, run layer
// by layer (ops/layer_student.h).
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

  // Number of elements in the tape of a batch, in which gradient can keep results for the
  // gradient_jvp of the same batch and parameters.
  int64_t tape_size(int64_t batch) const;
  static int64_t tape_size(const Network& network, int64_t batch, bool cuda);

  // The logits [B, K] of images [B, C, H, W] (channels-last) for parameters [P].
  Tensor logits(const Tensor& theta, const Tensor& images);

  // Writes the loss [] and its gradient [P]. If wanted, also writes the gradients in the images
  // [B, C, H, W] (channels-last) and in soft labels [B, K], the tape, and the statistics of batch
  // norms [3, channels] (mean, rstd, number of values).
  void gradient(const StudentProblem& problem, const Tensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                const std::optional<VectorPart>& tape,
                const OptionalTensor& statistics = std::nullopt);

  // Writes derivatives along the tangents: of the loss (one element), of the gradient in theta [P],
  // of the gradient in the images [B, C, H, W] (channels-last) and, if wanted, of the gradient in
  // soft labels [B, K].
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const VectorPart& directional, const Tensor& grad_theta,
                    const Tensor& grad_images, const OptionalTensor& grad_labels,
                    const std::optional<VectorPart>& tape);

 private:
  // Prepares a call of the CPU engine on a batch.
  StudentCall<T> call_on(const Tensor& images, const T* theta) const;
  StudentCall<T> call_on(const StudentProblem& problem, T* loss, const Tensor& grad_theta,
                         const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                         const std::optional<VectorPart>& tape) const;

  Network network_;
  std::optional<LayerStudent<T>> layers_;
};

extern template class Student<float>;
extern template class Student<double>;

// Allocates a vector for tapes. On the CPU, its memory is kept for the next tape when the tensor is
// freed.
Tensor empty_tape(int64_t elements, const Tensor& like);

// Frees the CPU memory that is kept between calls: that of the calling thread, and that of freed
// tapes.
void release_student_memory();

}  // namespace trajmatch
