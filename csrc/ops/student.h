// The student engine on the device of its tensors. On the CPU a ConvNet runs a few images at a time
// through the whole network (core/student.h). Other networks, and all networks on CUDA, run layer
// by layer (ops/layer_student.h).
//
// K trajectories are students with parameters and images of their own. CUDA runs them in the same
// launches, the CPU one after another.
#pragma once

#include <optional>

#include "core/student.h"
#include "ops/layer_student.h"
#include "ops/student_problem.h"

namespace trajmatch {

template <class T>
class Student {
 public:
  Student(const Network& network, const Tensor& like, int64_t trajectories = 1);

  // Number of elements in the tape of a batch of each trajectory, in which gradient can keep
  // results for the gradient_jvp of the same batches and parameters.
  static int64_t tape_size(const Network& network, int64_t batch, int64_t trajectories, bool cuda);

  // The logits [B, classes] of images [B, C, H, W] (channels-last) for parameters [P]; for a single
  // trajectory.
  Tensor logits(const Tensor& theta, const Tensor& images);

  // Writes the gradients [K, P] of the losses. If wanted, also writes the losses [K] (the CPU
  // engine always wants them), the gradients in the images [K B, C, H, W] (channels-last) and in
  // soft labels [K B, classes], the tape, and the statistics of batch norms [K, 3, channels] (mean,
  // rstd, number of values).
  void gradient(const StudentProblem& problem, const OptionalTensor& loss, const Tensor& grad_theta,
                const OptionalTensor& grad_images, const OptionalTensor& grad_labels,
                const std::optional<VectorPart>& tape,
                const OptionalTensor& statistics = std::nullopt);

  // Writes derivatives along the tangents: of the losses [K], of their gradients in theta [K, P],
  // of the gradient in the images [K B, C, H, W] (channels-last) and, if wanted, of the gradient in
  // soft labels [K B, classes].
  void gradient_jvp(const StudentProblem& problem, const StudentTangents& tangents,
                    const VectorPart& directional, const Tensor& grad_theta,
                    const Tensor& grad_images, const OptionalTensor& grad_labels,
                    const std::optional<VectorPart>& tape);

 private:
  // Calls body(trajectory, problem of that trajectory), if the CPU has more than one to run, and
  // returns true.
  template <class Body>
  bool each_trajectory(const StudentProblem& problem, const Body& body);

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
