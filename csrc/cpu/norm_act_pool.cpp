#include "core/norm_act_pool.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"

#define TM_KERNELS "cpu/norm_act_pool_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

// float64 serves checks only, so it runs the portable kernels on every processor.

template <>
void norm_act_pool_forward(const NormActPoolForward<float>& params, int64_t begin, int64_t end,
                           NormPhase phase, BatchMeans<float> means) {
  TM_DISPATCH_ISA(forward, params, begin, end, phase, means);
}
template <>
void norm_act_pool_forward(const NormActPoolForward<double>& params, int64_t begin, int64_t end,
                           NormPhase phase, BatchMeans<double> means) {
  portable::forward(params, begin, end, phase, means);
}

template <>
void norm_act_pool_backward(const NormActPoolBackward<float>& params, int64_t begin, int64_t end,
                            NormPhase phase, BatchMeans<float> means) {
  TM_DISPATCH_ISA(backward, params, begin, end, phase, means);
}
template <>
void norm_act_pool_backward(const NormActPoolBackward<double>& params, int64_t begin, int64_t end,
                            NormPhase phase, BatchMeans<double> means) {
  portable::backward(params, begin, end, phase, means);
}

template <>
void norm_act_pool_tangent(const NormActPoolTangent<float>& params, int64_t begin, int64_t end,
                           NormPhase phase, BatchMeans<float> means) {
  TM_DISPATCH_ISA(tangent, params, begin, end, phase, means);
}
template <>
void norm_act_pool_tangent(const NormActPoolTangent<double>& params, int64_t begin, int64_t end,
                           NormPhase phase, BatchMeans<double> means) {
  portable::tangent(params, begin, end, phase, means);
}

template <>
void norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<float>& params, int64_t begin,
                                    int64_t end, NormPhase phase, BatchMeans<float> means) {
  TM_DISPATCH_ISA(backward_tangent, params, begin, end, phase, means);
}
template <>
void norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<double>& params, int64_t begin,
                                    int64_t end, NormPhase phase, BatchMeans<double> means) {
  portable::backward_tangent(params, begin, end, phase, means);
}

namespace {

// Averages `count` means per image and channel over the batch. All images have equally many pixels,
// so a plain average is the mean over all pixels.
template <class T>
void mean_over_batch(const NormActPoolShape& shape, int64_t count, const BatchMeans<T>& means) {
  const int64_t size = count * shape.channels;
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (int64_t image = 0; image < shape.batch; ++image) sum += means.each[image * size + i];
    means.all[i] = static_cast<T>(sum / static_cast<double>(shape.batch));
  }
}

}  // namespace

// Batch variance = mean of the image variances + variance of the image means.
template <class T>
void combine(const NormActPoolForward<T>& params, const BatchMeans<T>& means) {
  const int64_t channels = params.shape.channels, batch = params.shape.batch;
  mean_over_batch(params.shape, 2, means);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (int64_t image = 0; image < batch; ++image) {
      const double deviation = double(means.each[2 * image * channels + c]) - means.all[c];
      sum += deviation * deviation;
    }
    means.all[channels + c] += static_cast<T>(sum / static_cast<double>(batch));
  }
  portable::write_statistics(params, means.all, means.all + channels, 0);
}
template <class T>
void combine(const NormActPoolTangent<T>& params, const BatchMeans<T>& means) {
  mean_over_batch(params.shape, 2, means);
  portable::write_statistics(params, means.all, means.all + params.shape.channels, 0);
}
template <class T>
void combine(const NormActPoolBackward<T>& params, const BatchMeans<T>& means) {
  mean_over_batch(params.shape, 2, means);
}
template <class T>
void combine(const NormActPoolBackwardTangent<T>& params, const BatchMeans<T>& means) {
  mean_over_batch(params.shape, 4, means);
}

#define TM_COMBINE(Params)                                               \
  template void combine(const Params<float>&, const BatchMeans<float>&); \
  template void combine(const Params<double>&, const BatchMeans<double>&);
TM_COMBINE(NormActPoolForward)
TM_COMBINE(NormActPoolBackward)
TM_COMBINE(NormActPoolTangent)
TM_COMBINE(NormActPoolBackwardTangent)
#undef TM_COMBINE

template <class T>
void sum_partial_affine(const NormActPoolShape& shape, const T* partial, T* weight, T* bias) {
  const int64_t size = shape.affine_size();
  for (int64_t i = 0; i < size; ++i) {
    double weight_sum = 0, bias_sum = 0;
    for (int64_t image = 0; image < shape.batch; ++image) {
      weight_sum += partial[2 * image * size + i];
      bias_sum += partial[(2 * image + 1) * size + i];
    }
    weight[i] = static_cast<T>(weight_sum);
    bias[i] = static_cast<T>(bias_sum);
  }
}

template void sum_partial_affine(const NormActPoolShape&, const float*, float*, float*);
template void sum_partial_affine(const NormActPoolShape&, const double*, double*, double*);

}  // namespace trajmatch::cpu
