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

// float64 exists for checks: it runs the portable loops everywhere.

template <>
void norm_act_pool_forward(const NormActPoolForward<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(forward, params, begin, end);
}
template <>
void norm_act_pool_forward(const NormActPoolForward<double>& params, int64_t begin, int64_t end) {
  portable::forward(params, begin, end);
}

template <>
void norm_act_pool_backward(const NormActPoolBackward<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(backward, params, begin, end);
}
template <>
void norm_act_pool_backward(const NormActPoolBackward<double>& params, int64_t begin, int64_t end) {
  portable::backward(params, begin, end);
}

template <>
void norm_act_pool_tangent(const NormActPoolTangent<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(tangent, params, begin, end);
}
template <>
void norm_act_pool_tangent(const NormActPoolTangent<double>& params, int64_t begin, int64_t end) {
  portable::tangent(params, begin, end);
}

template <>
void norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<float>& params, int64_t begin,
                                    int64_t end) {
  TM_DISPATCH_ISA(backward_tangent, params, begin, end);
}
template <>
void norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<double>& params, int64_t begin,
                                    int64_t end) {
  portable::backward_tangent(params, begin, end);
}

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
