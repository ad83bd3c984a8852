// One call of the student engine: the gradient of a batch's loss in the flat parameters, or the
// directional derivative of that gradient (docs/idea.md: lambda' H and its mixed parts). CPU only:
// images go through the whole network one or a few at a time, see cpu/student/walk.h.
//
// Letters: B images, S x S pixels, I input channels, K classes, P parameters.
#pragma once

#include <cstdint>
#include <functional>

#include "core/network.h"
#include "core/pages.h"
#include "core/soft_cross_entropy.h"

namespace trajmatch {

template <class T>
struct StudentBatch {
  int64_t size;          // B
  const T* images;       // [B, S, S, I]
  StudentLoss loss;      // for kSumLogits index and target are not read
  double scale;          // constant factor of the cross-entropy
  const int64_t* index;  // [B] class indices, or null
  const T* target;       // [B, K] soft labels, or null
};

template <class T>
struct StudentGradient {
  const Network* network;
  const T* theta;  // [P]
  StudentBatch<T> batch;
  T* loss;         // []
  T* grad_theta;   // [P]
  T* grad_images;  // [B, S, S, I], or null: not wanted
  T* grad_target;  // [B, K], or null: not wanted
  T* tape;         // [student_tape_size], or null: nothing is kept for gradient_jvp
};

// Tangents that are null are zero.
template <class T>
struct StudentGradientJvp {
  const Network* network;
  const T* theta;  // [P]
  StudentBatch<T> batch;
  const T* theta_tangent;   // [P]
  const T* images_tangent;  // [B, S, S, I]
  const T* target_tangent;  // [B, K]
  T* directional;           // [] tangent of the loss
  T* grad_theta;            // [P] tangents of the gradients:
  T* grad_images;           // [B, S, S, I]
  T* grad_target;           // [B, K], or null: not wanted
  const T* tape;            // what the gradient of the same theta and batch kept, or null
};

namespace cpu {

// Runs body(i) for all i of [0, count), on several threads where there are several.
using ParallelBody = std::function<void(int64_t)>;
using InParallel = std::function<void(int64_t count, const ParallelBody& body)>;

// Images are dealt to `parts` threads in runs of neighbours: the sums over images are the same bits
// for the same number of parts.
template <class T>
void student_gradient(const StudentGradient<T>& call, int64_t parts, const InParallel& in_parallel,
                      EngineMemory& memory);
template <class T>
void student_gradient_jvp(const StudentGradientJvp<T>& call, int64_t parts,
                          const InParallel& in_parallel, EngineMemory& memory);

// Elements of the tape of one batch.
template <class T>
int64_t student_tape_size(const Network& network, int64_t batch);

}  // namespace cpu
}  // namespace trajmatch
