// Norm, activation and pooling of one image on the CPU: the formulas of core/norm_act_pool.h on
// planes (cpu/student/plan.h), or on channels-last images whose channels fill whole packs. The
// passes keep xh instead of the convolution's output y, so that none computes it twice.
#pragma once

#include <cstdint>

#include "core/norm_act_pool.h"
#include "cpu/isa.h"

namespace trajmatch::cpu {

// Operands of the norm passes for one image. All pointers refer to memory of the caller. Weight,
// bias and their tangents and gradients have one value per channel, or one per pixel and channel
// (layer norm).
template <class T>
struct NormPass {
  const NormActPoolShape* shape;
  int64_t width;  // channels, zero channels of the last block included
  int64_t pixel;  // values from one pixel to the next
  int64_t row;    // pixels from one row to the next
  int64_t plane;  // values from one block to the next
  NormPhase phase;
  // [kNormMeans, width] What the first half of a pass passes to the second: mean and variance
  // (forward), <x'> and <xh x'> (tangent), <dxh> and <dxh xh> (backward), and their tangents.
  T* means;

  const T *weight, *bias;
  T* rstd;                     // [width] the forward pass writes it
  const T* y;                  // forward: the convolution's output
  T* xh;                       // plane, may be the same memory as y
  T* out;                      // first pixel of the output
  int64_t out_row, out_plane;  // as row and plane, for the output

  const T *weight_tangent, *bias_tangent;
  T* projection;  // [width] q of core/norm_act_pool.h
  const T* y_tangent;
  T* xh_tangent;  // may be the same memory as y_tangent
  T* out_tangent;

  const T* grad_out;           // layout of out
  const T* grad_out_tangent;   // layout of out
  T* grad_y;                   // plane, may be the same memory as xh
  T* grad_y_tangent;           // plane, may be the same memory as xh_tangent
  T *grad_weight, *grad_bias;  // added to; backward_tangent adds the tangents
  T* grad_conv_bias;           // [width] added to, or null; backward_tangent adds the tangent
};

constexpr int64_t kNormMeans = 4;

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
