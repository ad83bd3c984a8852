#include "core/first_convolution.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/activation.h"
#include "cpu/isa.h"

#define TM_KERNELS "cpu/first_convolution_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

namespace {

// Calls body(c, tap, value) with the weight [C, I, 3, 3] and the place (ky, kx, channel) of a tap.
template <class W, class Body>
void for_weight(const FirstConvolutionShape& shape, W* weight, const Body& body) {
  for (int64_t c = 0; c < shape.channels; ++c) {
    for (int64_t channel = 0; channel < shape.in_channels; ++channel) {
      for (int64_t k = 0; k < 9; ++k) {
        body(c, k * shape.in_channels + channel, weight[(c * shape.in_channels + channel) * 9 + k]);
      }
    }
  }
}

}  // namespace

template <class T>
void pack_first_weight(const FirstConvolutionShape& shape, const T* weight, T* packed) {
  for_weight(shape, weight, [&](int64_t c, int64_t tap, const T& value) {
    packed[tap * shape.channels + c] = value;
  });
}

template <class T>
void pack_first_columns(const FirstConvolutionShape& shape, const T* weight, T* packed) {
  constexpr int64_t width = FirstConvolutionShape::kColumns;
  std::fill_n(packed, shape.channels * width, T(0));
  for_weight(shape, weight,
             [&](int64_t c, int64_t tap, const T& value) { packed[c * width + tap] = value; });
}

template <class T>
void first_convolution_weight_finish(const FirstConvolutionWeight<T>& p) {
  const FirstConvolutionShape& shape = p.shape;
  for_weight(shape, p.grad_weight, [&](int64_t c, int64_t tap, T& value) {
    double sum = 0;
    for (int64_t image = 0; image < shape.batch; ++image) {
      sum += p.partial[(image * shape.taps() + tap) * shape.channels + c];
    }
    value = static_cast<T>(sum);
  });
}

template void pack_first_weight(const FirstConvolutionShape&, const float*, float*);
template void pack_first_weight(const FirstConvolutionShape&, const double*, double*);
template void pack_first_columns(const FirstConvolutionShape&, const float*, float*);
template void pack_first_columns(const FirstConvolutionShape&, const double*, double*);
template void first_convolution_weight_finish(const FirstConvolutionWeight<float>&);
template void first_convolution_weight_finish(const FirstConvolutionWeight<double>&);

// float64 exists for checks: it runs the portable loops everywhere.

template <>
void first_convolution(const FirstConvolutionForward<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(forward, params, begin, end);
}
template <>
void first_convolution(const FirstConvolutionForward<double>& params, int64_t begin, int64_t end) {
  portable::forward(params, begin, end);
}

template <>
void first_convolution_images(const FirstConvolutionImages<float>& params, int64_t begin,
                              int64_t end) {
  TM_DISPATCH_ISA(images, params, begin, end);
}
template <>
void first_convolution_images(const FirstConvolutionImages<double>& params, int64_t begin,
                              int64_t end) {
  portable::images(params, begin, end);
}

template <>
void first_convolution_weight(const FirstConvolutionWeight<float>& params, int64_t begin,
                              int64_t end) {
  TM_DISPATCH_ISA(weight, params, begin, end);
}
template <>
void first_convolution_weight(const FirstConvolutionWeight<double>& params, int64_t begin,
                              int64_t end) {
  portable::weight(params, begin, end);
}

}  // namespace trajmatch::cpu
