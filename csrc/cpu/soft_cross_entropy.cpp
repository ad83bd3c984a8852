#include "core/soft_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

namespace trajmatch::cpu {

namespace {

// Scratch memory for `count` values. The thread owns it, keeps it from call to call, and overwrites
// it the next time it asks.
double* values_of_thread(int64_t count) {
  static thread_local std::vector<double> values;
  if (static_cast<int64_t>(values.size()) < count) values.resize(count);
  return values.data();
}

// A row of probabilities and their logarithms, in double. The pointers are not owned.
struct Row {
  template <class T>
  void softmax(const T* z) {
    const double largest = *std::max_element(z, z + classes);
    double sum = 0;
    for (int64_t k = 0; k < classes; ++k) sum += value[k] = std::exp(z[k] - largest);
    const double log_sum = largest + std::log(sum);
    for (int64_t k = 0; k < classes; ++k) {
      log[k] = z[k] - log_sum;
      value[k] /= sum;
    }
  }
  // Sets `value` to the one-hot row of a class, or to NaN if there is no such class. Leaves `log`
  // as it is.
  void one_hot(int64_t index) {
    const bool known = index >= 0 && index < classes;
    std::fill_n(value, classes, known ? 0.0 : std::numeric_limits<double>::quiet_NaN());
    if (known) value[index] = 1.0;
  }
  int64_t classes;
  double *log, *value;
};

template <class A, class B>
double dot(const A& a, const B& b, int64_t count) {
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += static_cast<double>(a[k]) * b[k];
  return sum;
}

template <class T>
struct RowPair {
  explicit RowPair(const SoftCrossEntropyInputs<T>& in)
      : in(in),
        p{in.classes, values_of_thread(6 * in.classes), p.log + in.classes},
        q{in.classes, p.value + in.classes, q.log + in.classes},
        log_p_tangent(q.value + in.classes),
        q_tangent(log_p_tangent + in.classes),
        factor(in.scale / static_cast<double>(in.batch) *
               (in.grad_loss == nullptr ? 1.0 : static_cast<double>(*in.grad_loss))) {}
  void read(int64_t row) {
    p.softmax(in.logits + row * in.classes);
    if (in.index != nullptr) {
      q.one_hot(in.index[row]);
    } else if (in.probabilities()) {
      std::copy_n(in.target + row * in.classes, in.classes, q.value);
      weight = std::accumulate(q.value, q.value + in.classes, 0.0);
    } else {
      q.softmax(in.target + row * in.classes);
    }
  }
  // S = <q, l>, and the factor of l_k - S in the gradient in t_k: q_k through the softmax of target
  // logits. Probabilities are t itself: no softmax, so S is 0 and the factor is 1.
  double mean_log() const { return in.probabilities() ? 0.0 : dot(q.value, p.log, in.classes); }
  double chain(int64_t k) const { return in.probabilities() ? 1.0 : q.value[k]; }

  const SoftCrossEntropyInputs<T>& in;
  Row p, q;
  double *log_p_tangent, *q_tangent;
  double factor;        // scale * grad_loss / B
  double weight = 1.0;  // the sum of q
};

// Gradients of the mean squares for one row of outputs z and targets t. They are linear in z and t,
// so the tangents of z and t (null: 0) give the tangents of the gradients.
template <class T>
void squares_gradients(const SoftCrossEntropyInputs<T>& in, double factor, const T* z, const T* t,
                       int64_t row, T* grad_z, T* grad_t) {
  for (int64_t i = row * in.classes; i < (row + 1) * in.classes; ++i) {
    const double from_z = z == nullptr ? 0.0 : z[i], from_t = t == nullptr ? 0.0 : t[i];
    grad_z[i] = static_cast<T>(2 * factor / in.classes * (from_z - from_t));
    if (grad_t != nullptr) grad_t[i] = -grad_z[i];
  }
}

}  // namespace

template <class T>
void soft_cross_entropy_forward(const SoftCrossEntropyForward<T>& params, int64_t begin,
                                int64_t end) {
  RowPair<T> pair(params.in);
  for (int64_t row = begin; row < end; ++row) {
    if (params.in.squares()) {
      double sum = 0;
      for (int64_t i = row * params.in.classes; i < (row + 1) * params.in.classes; ++i) {
        const double difference = static_cast<double>(params.in.logits[i]) - params.in.target[i];
        sum += difference * difference;
      }
      params.row_loss[row] = static_cast<T>(pair.factor / params.in.classes * sum);
      continue;
    }
    pair.read(row);
    params.row_loss[row] =
        static_cast<T>(-pair.factor * dot(pair.q.value, pair.p.log, params.in.classes));
  }
}

template <class T>
void soft_cross_entropy_backward(const SoftCrossEntropyBackward<T>& params, int64_t begin,
                                 int64_t end) {
  RowPair<T> pair(params.in);
  const int64_t classes = params.in.classes;
  for (int64_t row = begin; row < end; ++row) {
    if (params.in.squares()) {
      squares_gradients(params.in, pair.factor, params.in.logits, params.in.target, row,
                        params.grad_logits, params.grad_target);
      continue;
    }
    pair.read(row);
    const double *p = pair.p.value, *q = pair.q.value, *log_p = pair.p.log;
    T* grad_logits = params.grad_logits + row * classes;
    for (int64_t k = 0; k < classes; ++k) {
      grad_logits[k] = static_cast<T>(pair.factor * (pair.weight * p[k] - q[k]));
    }
    if (params.grad_target == nullptr) continue;
    const double mean_log = pair.mean_log();
    T* grad_target = params.grad_target + row * classes;
    for (int64_t k = 0; k < classes; ++k) {
      grad_target[k] = static_cast<T>(-pair.factor * pair.chain(k) * (log_p[k] - mean_log));
    }
  }
}

template <class T>
void soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<T>& params,
                                         int64_t begin, int64_t end) {
  RowPair<T> pair(params.in);
  const int64_t classes = params.in.classes;
  double *log_p_tangent = pair.log_p_tangent, *q_tangent = pair.q_tangent;
  for (int64_t row = begin; row < end; ++row) {
    if (params.in.squares()) {
      double sum = 0;
      for (int64_t i = row * classes; i < (row + 1) * classes; ++i) {
        const double z = params.logits_tangent == nullptr ? 0.0 : params.logits_tangent[i];
        const double t = params.target_tangent == nullptr ? 0.0 : params.target_tangent[i];
        sum += (static_cast<double>(params.in.logits[i]) - params.in.target[i]) * (z - t);
      }
      params.row_directional[row] = static_cast<T>(2 * pair.factor / classes * sum);
      squares_gradients(params.in, pair.factor, params.logits_tangent, params.target_tangent, row,
                        params.grad_logits_tangent, params.grad_target_tangent);
      continue;
    }
    pair.read(row);
    const double *p = pair.p.value, *q = pair.q.value, *log_p = pair.p.log;
    const double mean_log = pair.mean_log();
    double directional = 0, weight_tangent = 0;
    std::fill_n(log_p_tangent, classes, 0.0);
    std::fill_n(q_tangent, classes, 0.0);
    if (params.logits_tangent != nullptr) {
      const T* z = params.logits_tangent + row * classes;
      const double mean = dot(p, z, classes);
      for (int64_t k = 0; k < classes; ++k) {
        log_p_tangent[k] = z[k] - mean;
        directional += (pair.weight * p[k] - q[k]) * z[k];
      }
    }
    if (params.target_tangent != nullptr) {
      const T* t = params.target_tangent + row * classes;
      const double mean = params.in.probabilities() ? 0.0 : dot(q, t, classes);
      for (int64_t k = 0; k < classes; ++k) {
        q_tangent[k] = pair.chain(k) * (t[k] - mean);
        directional -= pair.chain(k) * (log_p[k] - mean_log) * t[k];
        if (params.in.probabilities()) weight_tangent += t[k];
      }
    }
    params.row_directional[row] = static_cast<T>(pair.factor * directional);
    T* grad_logits = params.grad_logits_tangent + row * classes;
    for (int64_t k = 0; k < classes; ++k) {
      const double along_p = pair.weight * log_p_tangent[k] + weight_tangent;
      grad_logits[k] = static_cast<T>(pair.factor * (p[k] * along_p - q_tangent[k]));
    }
    if (params.grad_target_tangent == nullptr) continue;
    T* grad_target = params.grad_target_tangent + row * classes;
    if (params.in.probabilities()) {
      for (int64_t k = 0; k < classes; ++k) {
        grad_target[k] = static_cast<T>(-pair.factor * log_p_tangent[k]);
      }
      continue;
    }
    const double mean_log_tangent = dot(q_tangent, log_p, classes) + dot(q, log_p_tangent, classes);
    for (int64_t k = 0; k < classes; ++k) {
      grad_target[k] =
          static_cast<T>(-pair.factor * (q_tangent[k] * (log_p[k] - mean_log) +
                                         q[k] * (log_p_tangent[k] - mean_log_tangent)));
    }
  }
}

template <class T>
void sum_rows(const T* rows, int64_t count, T* sum) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += rows[i];
  *sum = static_cast<T>(total);
}

template void soft_cross_entropy_forward(const SoftCrossEntropyForward<float>&, int64_t, int64_t);
template void soft_cross_entropy_forward(const SoftCrossEntropyForward<double>&, int64_t, int64_t);
template void soft_cross_entropy_backward(const SoftCrossEntropyBackward<float>&, int64_t, int64_t);
template void soft_cross_entropy_backward(const SoftCrossEntropyBackward<double>&, int64_t,
                                          int64_t);
template void soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<float>&,
                                                  int64_t, int64_t);
template void soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<double>&,
                                                  int64_t, int64_t);
template void sum_rows(const float*, int64_t, float*);
template void sum_rows(const double*, int64_t, double*);

}  // namespace trajmatch::cpu
