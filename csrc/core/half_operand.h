// Operands of half-precision products (5 exponent bits, 10 mantissa bits), and rounded copies of
// activations for TF32 products, where a precise forward pass needs the original too.
//
// Half precision: each tensor is multiplied by a power of two, one per trajectory, that brings its
// largest magnitude into [2^14, 2^15). Nothing overflows, only values below 2^-39 of the largest
// underflow, and the result of a product is scaled back exactly by the inverse power. A tensor of
// zeros is not scaled. Infinities and NaN stay as they are and do not count as magnitudes.
//
// The power is derived from kMagnitudes numbers, each the largest magnitude in one part of the
// tensor. Every reader takes the maximum of them. This needs no atomics, nothing has to be cleared
// first, and the result does not depend on the order of execution.
//
// Bytes per number: 4 read to measure, 4 read and 2 written to round. The lower bounds for 100
// images of 16 x 16 x 128 on an H200 (4.3 TB/s) are 3 us and 5 us.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

constexpr int64_t kMagnitudes = 128;

struct MeasureMagnitudes {
  static constexpr int kMost = 16;
  struct Measured {
    const float* x;  // [size], K of them
    int64_t size;
    int64_t stride;     // elements between the tensors of two trajectories
    float* magnitudes;  // [K, kMagnitudes]
  };
  Measured each[kMost];
  int count;
  int64_t trajectories;  // K
};

struct RoundOperands {
  static constexpr int kMost = 2;
  struct Rounded {
    const float* x;           // [K, size]
    const float* magnitudes;  // [K, kMagnitudes], or null: round to TF32
    float* rounded;  // [K, size / 2], two halves per float, the first one in the low bits; TF32:
                     // [K, size]
  };
  Rounded each[kMost];
  int count;
  int64_t trajectories;  // K
  int64_t size;          // a multiple of 4
};

namespace cuda {
void launch_measure_magnitudes(const MeasureMagnitudes& params, Stream stream);
void launch_round_operands(const RoundOperands& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
