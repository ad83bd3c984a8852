// Losses of one row of outputs, computed by a warp (formulas: core/soft_cross_entropy.h). Its lanes
// stride over the classes. A row is read again, from cache, for each of its sums.
#pragma once

#include "core/soft_cross_entropy.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda::row_loss {

// Calls body(k) for the classes of this lane.
template <class Body>
__device__ __forceinline__ void for_each_class(int64_t classes, const Body& body) {
  TM_NO_UNROLL
  for (int64_t k = threadIdx.x % kWarpSize; k < classes; k += kWarpSize) body(k);
}

template <class Body>
__device__ __forceinline__ double sum_over_classes(int64_t classes, const Body& body) {
  double sum = 0.0;
  for_each_class(classes, [&](int64_t k) { sum += body(k); });
  return warp_sum(sum);
}

// log(sum(exp(z))) over a row of logits. The largest logit is subtracted so that exp cannot
// overflow.
template <class T>
__device__ __forceinline__ double log_sum_exp(const T* z, int64_t classes) {
  double largest = z[0];
  for_each_class(classes, [&](int64_t k) { largest = z[k] > largest ? z[k] : largest; });
  largest = warp_max(largest);
  return largest + log(sum_over_classes(classes, [&](int64_t k) { return exp(z[k] - largest); }));
}

// One row. Every lane of the warp holds the same values.
template <class T>
struct Row {
  __device__ __forceinline__ Row(const SoftCrossEntropyInputs<T>& in, int64_t row)
      : classes(in.classes),
        factor(in.scale / static_cast<double>(in.batch) *
               (in.grad_loss == nullptr ? 1.0 : static_cast<double>(*in.grad_loss))),
        logits(in.logits + row * in.classes),
        target(in.target == nullptr ? nullptr : in.target + row * in.classes),
        index(in.index == nullptr ? 0 : in.index[row]),
        probabilities(in.probabilities()),
        logits_sum(log_sum_exp(logits, classes)),
        target_sum(target == nullptr || probabilities ? 0.0 : log_sum_exp(target, classes)),
        weight(probabilities ? sum_over_classes(classes, [&](int64_t k) { return target[k]; })
                             : 1.0) {}

  __device__ __forceinline__ double log_p(int64_t k) const { return logits[k] - logits_sum; }
  __device__ __forceinline__ double p(int64_t k) const { return exp(log_p(k)); }
  __device__ __forceinline__ double q(int64_t k) const {
    if (probabilities) return target[k];
    if (target != nullptr) return exp(target[k] - target_sum);
    if (index < 0 || index >= classes) return nan("");
    return k == index ? 1.0 : 0.0;
  }
  // The two parts of the gradient dt_k = -factor chain(k) (log_p(k) - mean_log()). For target
  // logits, chain is q_k and mean_log is S = <q, log p>. Probabilities are t itself and have no
  // softmax to differentiate, so chain is 1 and mean_log is 0.
  __device__ __forceinline__ double chain(int64_t k) const { return probabilities ? 1.0 : q(k); }
  __device__ __forceinline__ double mean_log() const {
    return probabilities ? 0.0 : weighted_log();
  }
  __device__ __forceinline__ double weighted_log() const {
    return sum_over_classes(classes, [&](int64_t k) { return q(k) * log_p(k); });
  }

  int64_t classes;
  double factor;  // scale * grad_loss / B
  const T* logits;
  const T* target;  // or null: `index` is the class
  int64_t index;
  bool probabilities;
  double logits_sum;  // log of the sum of exponentials
  double target_sum;
  double weight;  // the sum of q
};

// Mean squares: one element of z - t. z and t are outputs and targets, or their tangents. Null
// means 0.
template <class T>
__device__ __forceinline__ double difference(const T* z, const T* t, int64_t i) {
  return (z == nullptr ? 0.0 : static_cast<double>(z[i])) -
         (t == nullptr ? 0.0 : static_cast<double>(t[i]));
}

// The factor of the gradient of mean squares: 2 scale grad_loss / (B K).
template <class T>
__device__ __forceinline__ double squares_factor(const SoftCrossEntropyInputs<T>& in) {
  return 2 * in.scale / static_cast<double>(in.batch * in.classes) *
         (in.grad_loss == nullptr ? 1.0 : static_cast<double>(*in.grad_loss));
}

// That factor times the sum over a row of (logits - target) (z - t).
template <class T>
__device__ __forceinline__ double squares_sum(const SoftCrossEntropyInputs<T>& in, int64_t row,
                                              const T* z, const T* t) {
  return squares_factor(in) * sum_over_classes(in.classes, [&](int64_t k) {
           const int64_t i = row * in.classes + k;
           return difference(in.logits, in.target, i) * difference(z, t, i);
         });
}

template <class T>
__device__ __forceinline__ void squares_gradients(const SoftCrossEntropyInputs<T>& in, int64_t row,
                                                  const T* z, const T* t, T* grad_z, T* grad_t) {
  const double factor = squares_factor(in);
  for_each_class(in.classes, [&](int64_t k) {
    const int64_t i = row * in.classes + k;
    grad_z[i] = static_cast<T>(factor * difference(z, t, i));
    if (grad_t != nullptr) grad_t[i] = -grad_z[i];
  });
}

__device__ __forceinline__ bool first_lane() { return threadIdx.x % kWarpSize == 0; }

// Row number `at` of the gradients.
template <class T>
__device__ __forceinline__ void differentiate(const SoftCrossEntropyBackward<T>& params,
                                              int64_t at) {
  if (params.in.squares()) {
    return squares_gradients(params.in, at, params.in.logits, params.in.target, params.grad_logits,
                             params.grad_target);
  }
  const Row<T> row(params.in, at);
  T* const grad_logits = params.grad_logits + at * row.classes;
  for_each_class(row.classes, [&](int64_t k) {
    grad_logits[k] = static_cast<T>(row.factor * (row.weight * row.p(k) - row.q(k)));
  });
  if (params.grad_target == nullptr) return;
  T* const grad_target = params.grad_target + at * row.classes;
  const double mean_log = row.mean_log();
  for_each_class(row.classes, [&](int64_t k) {
    grad_target[k] = static_cast<T>(-row.factor * row.chain(k) * (row.log_p(k) - mean_log));
  });
}

// Row number `at` of the tangents of loss and gradients.
template <class T>
__device__ __forceinline__ void differentiate(const SoftCrossEntropyBackwardTangent<T>& params,
                                              int64_t at) {
  if (params.in.squares()) {
    const double along = squares_sum(params.in, at, params.logits_tangent, params.target_tangent);
    if (first_lane()) params.row_directional[at] = static_cast<T>(along);
    return squares_gradients(params.in, at, params.logits_tangent, params.target_tangent,
                             params.grad_logits_tangent, params.grad_target_tangent);
  }
  const Row<T> row(params.in, at);
  const int64_t classes = row.classes;
  const T* const z =
      params.logits_tangent == nullptr ? nullptr : params.logits_tangent + at * classes;
  const T* const t =
      params.target_tangent == nullptr ? nullptr : params.target_tangent + at * classes;

  // (log p)' = z' - <p, z'> and, for target logits, q' = q (t' - <q, t'>). Probabilities are q = t,
  // so q' = t'.
  const double mean_z =
      z == nullptr ? 0.0 : sum_over_classes(classes, [&](int64_t k) { return row.p(k) * z[k]; });
  const double sum_t =
      t == nullptr ? 0.0
                   : sum_over_classes(classes, [&](int64_t k) { return row.chain(k) * t[k]; });
  const double mean_t = row.probabilities ? 0.0 : sum_t;
  const double weight_tangent = row.probabilities ? sum_t : 0.0;
  const auto log_p_tangent = [&](int64_t k) { return z == nullptr ? 0.0 : z[k] - mean_z; };
  const auto q_tangent = [&](int64_t k) {
    return t == nullptr ? 0.0 : row.chain(k) * (t[k] - mean_t);
  };

  const double mean_log = row.mean_log();
  const double directional = sum_over_classes(classes, [&](int64_t k) {
    const double along_z = z == nullptr ? 0.0 : (row.weight * row.p(k) - row.q(k)) * z[k];
    const double along_t = t == nullptr ? 0.0 : row.chain(k) * (row.log_p(k) - mean_log) * t[k];
    return along_z - along_t;
  });
  if (first_lane()) params.row_directional[at] = static_cast<T>(row.factor * directional);

  T* const grad_logits = params.grad_logits_tangent + at * classes;
  for_each_class(classes, [&](int64_t k) {
    const double along_p = row.weight * log_p_tangent(k) + weight_tangent;
    grad_logits[k] = static_cast<T>(row.factor * (row.p(k) * along_p - q_tangent(k)));
  });
  if (params.grad_target_tangent == nullptr) return;
  T* const grad_target = params.grad_target_tangent + at * classes;
  if (row.probabilities) {
    return for_each_class(classes, [&](int64_t k) {
      grad_target[k] = static_cast<T>(-row.factor * log_p_tangent(k));
    });
  }
  const double mean_log_tangent = sum_over_classes(classes, [&](int64_t k) {
    return q_tangent(k) * row.log_p(k) + row.q(k) * log_p_tangent(k);
  });
  for_each_class(classes, [&](int64_t k) {
    grad_target[k] =
        static_cast<T>(-row.factor * (q_tangent(k) * (row.log_p(k) - mean_log) +
                                      row.q(k) * (log_p_tangent(k) - mean_log_tangent)));
  });
}

}  // namespace trajmatch::cuda::row_loss
