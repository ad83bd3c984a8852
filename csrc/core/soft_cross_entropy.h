// Losses of outputs z [B, K], their gradients, and the tangents of the gradients. The losses are
// mean cross-entropy with class indices [B], target logits t [B, K] or probabilities t [B, K], and
// mean squared error.
//
//   q = softmax(t) (or one-hot), p = softmax(z), l = log p,  loss = -(1/B) sum_i <q_i, l_i>
//   dz = (p - q) / B                     dt = -q (l - S) / B            with S = <q, l> of the row
//   tangents:  p' = p (z' - <p, z'>)     q' = q (t' - <q, t'>)          l' = z' - <p, z'>
//   dz' = (p' - q') / B                  dt' = -(q' (l - S) + q (l' - S')) / B,
//                                        S' = <q', l> + <q, l'>
//   loss' = <dz, z'> + <dt, t'>
// Probabilities are used as they are, q = t, with any sum w = sum(q); there is no softmax to
// differentiate:
//   dz = (w p - q) / B                   dt = -l / B
//   dz' = (w' p + w p' - t') / B         dt' = -l' / B
// Mean squared error:
//   loss = (1/(BK)) sum (z - t)^2        dz = 2 (z - t) / (BK) = -dt      dz' = 2 (z' - t') / (BK)
// All results are multiplied by `scale` and, if it is not null, by the scalar `grad_loss`. A class
// index outside [0, K) makes the results of its row NaN. On CUDA, several trajectories (students
// trained side by side) may share a call: each has B rows and a loss of its own.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

// Losses of a student, in the same order as in trajmatch/ops/student.py.
enum class StudentLoss : int { kCrossEntropy = 0, kSumLogits, kMeanSquares, kProbabilities };

// The inputs of all passes. Exactly one of `index` and `target` is not null.
template <class T>
struct SoftCrossEntropyInputs {
  int64_t batch, classes;
  double scale;                                   // constant factor of the loss
  const T* grad_loss;                             // [] factor on the same device, or null (1)
  const T* logits;                                // [B, K]
  const int64_t* index;                           // [B]
  const T* target;                                // [B, K]
  StudentLoss loss = StudentLoss::kCrossEntropy;  // must not be kSumLogits
  int64_t trajectories = 1;

  TM_HD int64_t rows() const { return trajectories * batch; }
  TM_HD bool squares() const { return loss == StudentLoss::kMeanSquares; }
  TM_HD bool probabilities() const { return loss == StudentLoss::kProbabilities; }
};

template <class T>
struct SoftCrossEntropyForward {
  SoftCrossEntropyInputs<T> in;
  T* row_loss;  // [B] the share of each row
  T* loss;      // [], one per trajectory; null on CUDA: the shares are not added up
};

template <class T>
struct SoftCrossEntropyBackward {
  SoftCrossEntropyInputs<T> in;
  T* grad_logits;  // [B, K]
  T* grad_target;  // [B, K], or null if not wanted (always null for class indices)
};

template <class T>
struct SoftCrossEntropyBackwardTangent {
  SoftCrossEntropyInputs<T> in;
  const T* logits_tangent;  // [B, K], or null (0)
  const T* target_tangent;  // [B, K], or null (0)
  T* row_directional;       // [B] the share of each row
  T* directional;           // [], one per trajectory: tangent of the loss; may be null as `loss`
  T* grad_logits_tangent;   // [B, K]
  T* grad_target_tangent;   // [B, K], or null if not wanted
};

namespace cpu {
// Rows [begin, end). sum_rows then adds up `row_loss` or `row_directional` in row order.
template <class T>
void soft_cross_entropy_forward(const SoftCrossEntropyForward<T>& params, int64_t begin,
                                int64_t end);
template <class T>
void soft_cross_entropy_backward(const SoftCrossEntropyBackward<T>& params, int64_t begin,
                                 int64_t end);
template <class T>
void soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<T>& params,
                                         int64_t begin, int64_t end);
template <class T>
void sum_rows(const T* rows, int64_t count, T* sum);
}  // namespace cpu

namespace cuda {
template <class T>
void launch_soft_cross_entropy_forward(const SoftCrossEntropyForward<T>& params, Stream stream);
template <class T>
void launch_soft_cross_entropy_backward(const SoftCrossEntropyBackward<T>& params, Stream stream);
template <class T>
void launch_soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<T>& params,
                                                Stream stream);
}  // namespace cuda

}  // namespace trajmatch
