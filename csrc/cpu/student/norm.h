// Norm, activation and pooling of one image inside the student engine: the formulas of
// core/norm_act_pool.h on planes (cpu/student/plan.h), with xh in the place of the convolution's
// output so that no pass computes it twice.
#pragma once

#include <cstdint>

#include "core/norm_act_pool.h"
#include "cpu/isa.h"

namespace trajmatch::cpu {

// Weight and bias: of each channel, or of each pixel and channel (layer norm).
template <class T>
struct NormPass {
  const NormActPoolShape* shape;
  int64_t side;   // of the plane [blocks][side][side][lanes]
  int64_t width;  // channels with those that fill up the last block
  T* scratch;     // [kNormScratch * width]

  const T *weight, *bias;
  T* rstd;     // [width]
  const T* y;  // forward: the convolution's output
  T* xh;       // plane, may be y's
  T* out;      // first pixel of the output, in a plane of this side:
  int64_t out_side;
  int64_t out_plane;  // from block to block

  const T *weight_tangent, *bias_tangent;
  T* projection;  // [width] q
  T* xh_tangent;  // tangent: the tangent of y, then that of xh, in place
  T* out_tangent;

  const T* grad_out;           // as out
  const T* grad_out_tangent;   // as out
  T* grad_y;                   // plane, may be xh's
  T* grad_y_tangent;           // plane, may be xh_tangent's
  T *grad_weight, *grad_bias;  // added to; of the tangent pass the tangents
  T* grad_conv_bias;           // [width], added to, or null; of the tangent pass the tangent
};

constexpr int64_t kNormScratch = 8;

#define TM_DECLARE_NORM(isa, T)                        \
  namespace isa {                                      \
  void norm_forward(const NormPass<T>& pass);          \
  void norm_tangent(const NormPass<T>& pass);          \
  void norm_backward(const NormPass<T>& pass);         \
  void norm_backward_tangent(const NormPass<T>& pass); \
  }
TM_DECLARE_NORM(portable, float)
TM_DECLARE_NORM(portable, double)
#ifdef TM_HAVE_X86_ISAS
TM_DECLARE_NORM(avx2, float)
TM_DECLARE_NORM(avx512, float)
#endif
#undef TM_DECLARE_NORM

}  // namespace trajmatch::cpu
