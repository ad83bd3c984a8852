// Logits of one image, computed by a block (formulas: core/classifier.h).
#pragma once

#include "core/classifier.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda::classifier {

constexpr int kThreads = 256;
constexpr int kClasses = 5;  // that a block sums at the same time

// The position in memory of the feature that is multiplied by weight `at` of a class. Weights are
// ordered as channel * pixels + pixel, features as pixel * channels + channel.
__device__ __forceinline__ unsigned place_of_feature(const ClassifierShape& shape, unsigned at) {
  const unsigned pixels = static_cast<unsigned>(shape.pixels);
  return at % pixels * static_cast<unsigned>(shape.channels) + at / pixels;
}

// Writes the logits of kClasses classes of an image; image numbers count over all trajectories. A
// block that calls it again needs a barrier in between.
template <class T>
__device__ __forceinline__ void write_logits(const ClassifierForward<T>& p, int64_t image,
                                             int64_t first_class) {
  const int64_t parameters = image / p.shape.batch * p.shape.parameter_stride;
  const unsigned features = static_cast<unsigned>(p.shape.features());
  T sums[kClasses] = {};
  TM_UNROLL
  for (int t = 0; t < 2; ++t) {
    if (t == p.terms) break;
    const T* const f = p.term[t].batch_side + image * features;
    const T* const w = p.term[t].weight_side + parameters + first_class * features;
    for (unsigned at = threadIdx.x; at < features; at += kThreads) {
      const T value = f[place_of_feature(p.shape, at)];
      TM_UNROLL
      for (int k = 0; k < kClasses; ++k) {
        if (first_class + k < p.shape.classes) {
          sums[k] += w[static_cast<int64_t>(k) * features + at] * value;
        }
      }
    }
  }
  double total[kClasses];
  TM_UNROLL
  for (int k = 0; k < kClasses; ++k) total[k] = static_cast<double>(sums[k]);
  block_sum<kThreads>(total);
  if (threadIdx.x > 0) return;
  TM_UNROLL
  for (int k = 0; k < kClasses; ++k) {
    const int64_t at = first_class + k;
    if (at >= p.shape.classes) break;
    const double bias = p.bias == nullptr ? 0.0 : static_cast<double>(p.bias[parameters + at]);
    p.logits[image * p.shape.classes + at] = static_cast<T>(total[k] + bias);
  }
}

}  // namespace trajmatch::cuda::classifier
