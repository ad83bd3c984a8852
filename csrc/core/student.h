// One call of the student engine on the CPU: the logits of a batch, the gradient of its loss in the
// flat parameters, or the directional derivative of that gradient (docs/idea.md: lambda' H and its
// mixed parts). Images go through the whole network one or a few at a time, see cpu/student/walk.h.
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
  StudentLoss loss;      // index and target are not read for kSumLogits
  double scale;          // constant factor of the loss; not used by kSumLogits
  const int64_t* index;  // [B] class indices, or null
  const T* target;       // [B, K] soft labels, or null
};

namespace cpu {

// Runs body(i) for all i in [0, count), on several threads if there are several.
using ParallelBody = std::function<void(int64_t)>;
using InParallel = std::function<void(int64_t count, const ParallelBody& body)>;

}  // namespace cpu

enum class StudentPass { kLogits, kGradient, kGradientJvp };

// kLogits reads the first four members and writes `logits`. A null tangent is zero; a null result
// is not wanted.
template <class T>
struct StudentCall {
  StudentPass pass;
  const Network* network;
  StudentBatch<T> batch;
  const T* theta;           // [P]
  const T* theta_tangent;   // [P]; this and the next two are for kGradientJvp
  const T* images_tangent;  // [B, S, S, I]
  const T* target_tangent;  // [B, K]
  T* logits;                // [B, K]
  T* loss;                  // []; this and the next three hold derivatives in kGradientJvp
  T* grad_theta;            // [P]
  T* grad_images;           // [B, S, S, I]
  T* grad_target;           // [B, K]
  T* tape;                  // [student_tape_size]: written by kGradient, read by kGradientJvp

  int64_t parts;
  const cpu::InParallel* in_parallel;
  cpu::EngineMemory* memory;

  bool tangent() const { return pass == StudentPass::kGradientJvp; }
};

namespace cpu {

// Each of `parts` threads gets a run of consecutive images, so `parts` must not exceed the batch
// size. The sums over images are bitwise reproducible for the same number of parts.
template <class T>
void run_student(const StudentCall<T>& call);

// Number of elements in the tape of one batch.
template <class T>
int64_t student_tape_size(const Network& network, int64_t batch);

}  // namespace cpu
}  // namespace trajmatch
