#include "core/norm_act_pool.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/student/norm.h"

#define TM_KERNELS "cpu/norm_act_pool_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

// float64 serves checks only, so it runs the portable kernels on every processor.
#define TM_DEFINE(pass, Params)                                                       \
  template <>                                                                         \
  void norm_act_pool_##pass(const Params<float>& params, int64_t begin, int64_t end,  \
                            NormPhase phase, BatchMeans<float> means) {               \
    TM_DISPATCH_ISA(pass, params, begin, end, phase, means);                          \
  }                                                                                   \
  template <>                                                                         \
  void norm_act_pool_##pass(const Params<double>& params, int64_t begin, int64_t end, \
                            NormPhase phase, BatchMeans<double> means) {              \
    portable::pass(params, begin, end, phase, means);                                 \
  }
TM_DEFINE(forward, NormActPoolForward)
TM_DEFINE(backward, NormActPoolBackward)
TM_DEFINE(tangent, NormActPoolTangent)
TM_DEFINE(backward_tangent, NormActPoolBackwardTangent)
#undef TM_DEFINE

// All images have equally many pixels, so a plain average of their means is the mean over all
// pixels.
template <class T>
void means_over_batch(const NormActPoolShape& shape, int64_t count, bool variances,
                      const BatchMeans<T>& means) {
  const int64_t size = count * shape.channels;
  const auto average = [&](int64_t i, T centre, int power) {
    double sum = 0;
    for (int64_t image = 0; image < shape.batch; ++image) {
      const double value = double(means.each[image * size + i]) - centre;
      sum += power == 2 ? value * value : value;
    }
    return static_cast<T>(sum / static_cast<double>(shape.batch));
  };
  for (int64_t i = 0; i < size; ++i) means.all[i] = average(i, T(0), 1);
  // Batch variance = mean of the image variances + variance of the image means.
  for (int64_t c = 0; variances && c < shape.channels; ++c) {
    means.all[shape.channels + c] += average(c, means.all[c], 2);
  }
}

template void means_over_batch(const NormActPoolShape&, int64_t, bool, const BatchMeans<float>&);
template void means_over_batch(const NormActPoolShape&, int64_t, bool, const BatchMeans<double>&);

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
