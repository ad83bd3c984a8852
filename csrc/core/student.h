// One call of the student engine: the logits of a batch, the gradient of its loss in the flat
// parameters, or the directional derivative of that gradient (docs/idea.md: lambda' H and its mixed
// parts). CPU only:
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

namespace cpu {

// Runs body(i) for all i of [0, count), on several threads where there are several.
using ParallelBody = std::function<void(int64_t)>;
using InParallel = std::function<void(int64_t count, const ParallelBody& body)>;

}  // namespace cpu

enum class StudentPass { kLogits, kGradient, kGradientJvp };

// Of kLogits the first four members and `logits`. What is null is not wanted, of tangents zero.
template <class T>
struct StudentCall {
  StudentPass pass;
  const Network* network;
  StudentBatch<T> batch;
  const T* theta;           // [P]
  const T* theta_tangent;   // [P]; this and the next two in kGradientJvp
  const T* images_tangent;  // [B, S, S, I]
  const T* target_tangent;  // [B, K]
  T* logits;                // [B, K]
  T* loss;                  // []; this and the next three are derivatives in kGradientJvp
  T* grad_theta;            // [P]
  T* grad_images;           // [B, S, S, I]
  T* grad_target;           // [B, K]
  T* tape;                  // [student_tape_size]: written by a gradient, read by its derivative

  int64_t parts;
  const cpu::InParallel* in_parallel;
  cpu::EngineMemory* memory;

  bool tangent() const { return pass == StudentPass::kGradientJvp; }
};

namespace cpu {

// Images are dealt to `parts` threads in runs of neighbours, at most one for each image: the sums
// over images are the same bits for the same number of parts.
template <class T>
void run_student(const StudentCall<T>& call);

// Elements of the tape of one batch.
template <class T>
int64_t student_tape_size(const Network& network, int64_t batch);

}  // namespace cpu
}  // namespace trajmatch
