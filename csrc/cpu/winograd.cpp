#include "core/winograd.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/activation.h"
#include "cpu/isa.h"

#define TM_KERNELS "cpu/winograd_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

namespace {

// G g for a column of three, and G' u for a column of four.
template <class T>
void weight_transform(const T* g, T* u) {
  const T ends = (g[0] + g[2]) / 2, middle = g[1] / 2;
  u[0] = g[0];
  u[1] = ends + middle;
  u[2] = ends - middle;
  u[3] = g[2];
}
template <class T>
void weight_transform_adjoint(const T* u, T* g) {
  const T sum = (u[1] + u[2]) / 2;
  g[0] = u[0] + sum;
  g[1] = (u[1] - u[2]) / 2;
  g[2] = sum + u[3];
}

// U of the 3x3 weights that at(input channel, output channel) points to, `turn` steps between them
// (1, or -1 from the last one).
template <class T, class At>
void pack(const WinogradShape& shape, const At& at, int turn, T* packed, int64_t begin,
          int64_t end) {
  constexpr int64_t width = WinogradShape::kPanel;
  const int64_t step = shape.panels() * shape.in_channels * width;  // from frequency to frequency
  for (int64_t in = begin; in < end; ++in) {
    for (int64_t out = 0; out < shape.panels() * width; ++out) {
      T* to = packed + (out / width * shape.in_channels + in) * width + out % width;
      if (out >= shape.channels) {
        for (int64_t f = 0; f < WinogradShape::kFrequencies; ++f) to[f * step] = T(0);
        continue;
      }
      const T* g = at(in, out);
      T half[3][4];  // half[kx] = G of column kx
      for (int kx = 0; kx < 3; ++kx) {
        const T column[3] = {g[turn * kx], g[turn * (3 + kx)], g[turn * (6 + kx)]};
        weight_transform(column, half[kx]);
      }
      for (int i = 0; i < 4; ++i) {
        const T row[3] = {half[0][i], half[1][i], half[2][i]};
        T result[4];
        weight_transform(row, result);
        for (int j = 0; j < 4; ++j) to[(4 * i + j) * step] = result[j];
      }
    }
  }
}

}  // namespace

template <class T>
void pack_winograd(const WinogradShape& shape, const T* weight, T* packed, int64_t begin,
                   int64_t end) {
  const auto at = [&](int64_t in, int64_t out) {
    return weight + (out * shape.in_channels + in) * 9;
  };
  pack(shape, at, 1, packed, begin, end);
}

template <class T>
void pack_winograd_turned(const WinogradShape& shape, const T* weight, T* packed, int64_t begin,
                          int64_t end) {
  const auto at = [&](int64_t in, int64_t out) {
    return weight + (in * shape.channels + out) * 9 + 8;
  };
  pack(shape, at, -1, packed, begin, end);
}

template <class T>
void winograd_weight_finish(const WinogradWeight<T>& p, int64_t begin, int64_t end) {
  const WinogradShape& shape = p.shape;
  const int64_t channels = shape.channels, step = shape.in_channels * channels;
  for (int64_t in = begin; in < end; ++in) {
    for (int64_t out = 0; out < channels; ++out) {
      T u[16];
      for (int64_t f = 0; f < WinogradShape::kFrequencies; ++f) {
        T sum = T(0);
        for (int64_t part = 0; part < shape.weight_parts(); ++part) {
          sum += p.partial[(part * WinogradShape::kFrequencies + f) * step + in * channels + out];
        }
        u[f] = sum;
      }
      T half[4][3];  // half[j] = G' of column j
      for (int j = 0; j < 4; ++j) {
        const T column[4] = {u[j], u[4 + j], u[8 + j], u[12 + j]};
        weight_transform_adjoint(column, half[j]);
      }
      T* g = p.grad_weight + (out * shape.in_channels + in) * 9;
      for (int ky = 0; ky < 3; ++ky) {
        const T row[4] = {half[0][ky], half[1][ky], half[2][ky], half[3][ky]};
        weight_transform_adjoint(row, g + 3 * ky);
      }
    }
  }
}

template void pack_winograd(const WinogradShape&, const float*, float*, int64_t, int64_t);
template void pack_winograd(const WinogradShape&, const double*, double*, int64_t, int64_t);
template void pack_winograd_turned(const WinogradShape&, const float*, float*, int64_t, int64_t);
template void pack_winograd_turned(const WinogradShape&, const double*, double*, int64_t, int64_t);
template void winograd_weight_finish(const WinogradWeight<float>&, int64_t, int64_t);
template void winograd_weight_finish(const WinogradWeight<double>&, int64_t, int64_t);

// float64 exists for checks: it runs the portable loops everywhere.

template <>
void winograd_convolution(const WinogradConvolution<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(convolution, params, begin, end);
}
template <>
void winograd_convolution(const WinogradConvolution<double>& params, int64_t begin, int64_t end) {
  portable::convolution(params, begin, end);
}

template <>
void winograd_weight(const WinogradWeight<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(weight, params, begin, end);
}
template <>
void winograd_weight(const WinogradWeight<double>& params, int64_t begin, int64_t end) {
  portable::weight(params, begin, end);
}

}  // namespace trajmatch::cpu
