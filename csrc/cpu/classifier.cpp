#include "core/classifier.h"

#include <algorithm>
#include <cstdint>

namespace trajmatch::cpu {

// Features are channels last, [B, pixels, C]; weights are channels first, [K, C, pixels].
template <class T>
void classifier_forward(const ClassifierForward<T>& p, int64_t begin, int64_t end) {
  const ClassifierShape& s = p.shape;
  for (int64_t image = begin; image < end; ++image) {
    for (int64_t k = 0; k < s.classes; ++k) {
      double sum = p.bias == nullptr ? 0.0 : p.bias[k];
      for (int t = 0; t < p.terms; ++t) {
        const T* const f = p.term[t].batch_side + image * s.features();
        const T* w = p.term[t].weight_side + k * s.features();
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
            sum += f[pixel * s.channels + c] * *w++;
          }
        }
      }
      p.logits[image * s.classes + k] = static_cast<T>(sum);
    }
  }
}

template <class T>
void classifier_input_gradient(const ClassifierInputGradient<T>& p, int64_t begin, int64_t end) {
  const ClassifierShape& s = p.shape;
  for (int64_t image = begin; image < end; ++image) {
    T* const grad = p.grad_features + image * s.features();
    std::fill_n(grad, s.features(), T(0));
    for (int t = 0; t < p.terms; ++t) {
      const T* w = p.term[t].weight_side;
      for (int64_t k = 0; k < s.classes; ++k) {
        const T g = p.term[t].batch_side[image * s.classes + k];
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t pixel = 0; pixel < s.pixels; ++pixel) {
            grad[pixel * s.channels + c] += g * *w++;
          }
        }
      }
    }
  }
}

template <class T>
void classifier_weight_gradient(const ClassifierWeightGradient<T>& p, int64_t begin, int64_t end) {
  const ClassifierShape& s = p.shape;
  for (int64_t k = begin; k < end; ++k) {
    T* const grad = p.grad_weight + k * s.features();
    std::fill_n(grad, s.features(), T(0));
    T bias = 0;
    for (int t = 0; t < p.terms; ++t) {
      for (int64_t image = 0; image < s.batch; ++image) {
        const T g = p.term[t].batch_side[image * s.classes + k];
        const T* const f = p.term[t].weight_side + image * s.features();
        if (t == 0) bias += g;
        T* to = grad;
        for (int64_t c = 0; c < s.channels; ++c) {
          for (int64_t pixel = 0; pixel < s.pixels; ++pixel) *to++ += g * f[pixel * s.channels + c];
        }
      }
    }
    p.grad_bias[k] = bias;
  }
}

template void classifier_forward(const ClassifierForward<float>&, int64_t, int64_t);
template void classifier_forward(const ClassifierForward<double>&, int64_t, int64_t);
template void classifier_input_gradient(const ClassifierInputGradient<float>&, int64_t, int64_t);
template void classifier_input_gradient(const ClassifierInputGradient<double>&, int64_t, int64_t);
template void classifier_weight_gradient(const ClassifierWeightGradient<float>&, int64_t, int64_t);
template void classifier_weight_gradient(const ClassifierWeightGradient<double>&, int64_t, int64_t);

}  // namespace trajmatch::cpu
