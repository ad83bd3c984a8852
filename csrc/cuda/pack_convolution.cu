// Reorders convolution weights into the layout that the fused kernels read
// (core/fused_convolution.h).
//
// One thread per packed word: one float32 weight, or two fp16 weights. One launch takes the weights
// of all layers. Deterministic. No argument may alias another. Bytes per weight: 4 read, and 4 or 2
// written. At C = 128 this takes about a microsecond, including the cost of the strided reads.

#include <algorithm>

#include "core/fused_convolution.h"
#include "cuda/elementwise.cuh"
#include "cuda/half_operand.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

__device__ __forceinline__ float weight_at(const PackConvolution& p, int64_t input, int64_t output,
                                           int64_t tap) {
  const float* const weight = p.weight + blockIdx.z * p.parameter_stride;
  return p.turned ? weight[(input * p.shape.channels + output) * 9 + 8 - tap]
                  : weight[(output * p.shape.channels + input) * 9 + tap];
}

__device__ __forceinline__ void pack(const PackConvolution& p) {
  const int64_t channels = p.shape.channels, size = p.shape.weight_size();
  float* const packed = p.packed + blockIdx.z * size;
  for_each_element(size, [&](int64_t i) {
    // Packed layout: [input / 16, row of taps, tap, input / 4 % 4, output, input % 4].
    const int64_t input = i / (9 * 16 * channels) * 16 + i / (4 * channels) % 4 * 4 + i % 4;
    const float value = weight_at(p, input, i / 4 % channels, i / (16 * channels) % 9);
    packed[i] = p.kind == ProductKind::kTf32 ? round_to_tf32(value) : value;
  });
}

__device__ __forceinline__ void pack_in_halves(const PackConvolution& p) {
  const int64_t channels = p.shape.channels, size = p.shape.weight_size() / 2;
  const PowerOfTwo scale(scale_exponent(p.magnitudes, blockIdx.z));
  float* const packed = p.packed + blockIdx.z * size;
  for_each_element(size, [&](int64_t i) {
    // Packed layout: [input / 32, row of taps, tap, input / 8 % 4, output, input / 2 % 4], two
    // inputs per word.
    const int64_t input = i / (9 * 16 * channels) * 32 + i / (4 * channels) % 4 * 8 + i % 4 * 2;
    const int64_t output = i / 4 % channels, tap = i / (16 * channels) % 9;
    packed[i] = __uint_as_float(two_halves(scale.times(weight_at(p, input, output, tap)),
                                           scale.times(weight_at(p, input + 1, output, tap))));
  });
}

__global__ void __launch_bounds__(kElementwiseThreads)
    pack_convolutions_kernel(PackConvolutions p) {
  const PackConvolution& own = p.each[blockIdx.y];
  if (own.kind == ProductKind::kFp16) {
    pack_in_halves(own);
  } else {
    pack(own);
  }
}

}  // namespace

void launch_pack_convolutions(const PackConvolutions& params, Stream stream) {
  int64_t largest = 0;
  for (int i = 0; i < params.count; ++i) {
    const PackConvolution& own = params.each[i];
    largest = std::max(largest, PackConvolution::packed_size(own.shape, own.kind));
  }
  const dim3 grid(elementwise_blocks(largest), grid_size(params.count),
                  grid_size(params.each[0].shape.trajectories));
  TM_LAUNCH(pack_convolutions_kernel, grid, kElementwiseThreads, 0, stream, params);
}

}  // namespace trajmatch::cuda
