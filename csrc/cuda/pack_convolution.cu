// Weights of a convolution in the order that the fused kernels read (core/fused_convolution.h).
//
// A thread per packed weight. Deterministic; nothing may alias. Bytes per weight: 4 read, 4
// written; at C = 128, with what reading out of order costs, about a microsecond.

#include "core/fused_convolution.h"
#include "cuda/elementwise.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

__global__ void __launch_bounds__(kElementwiseThreads) pack_convolution_kernel(PackConvolution p) {
  const int64_t channels = p.shape.channels, size = p.shape.weight_size();
  const float* const weight = p.weight + blockIdx.z * p.parameter_stride;
  float* const packed = p.packed + blockIdx.z * size;
  for_each_element(size, [&](int64_t i) {
    // [input / 16, row of taps, tap, input / 4 % 4, output, input % 4]
    const int64_t output = i / 4 % channels;
    const int64_t tap = i / (16 * channels) % 9;
    const int64_t input = i / (9 * 16 * channels) * 16 + i / (4 * channels) % 4 * 4 + i % 4;
    const float value = p.turned ? weight[(input * channels + output) * 9 + 8 - tap]
                                 : weight[(output * channels + input) * 9 + tap];
    packed[i] = p.kind == ProductKind::kTf32 ? round_to_tf32(value) : value;
  });
}

}  // namespace

void launch_pack_convolution(const PackConvolution& params, Stream stream) {
  const dim3 grid(elementwise_blocks(params.shape.weight_size()), 1,
                  grid_size(params.shape.trajectories));
  TM_LAUNCH(pack_convolution_kernel, grid, kElementwiseThreads, 0, stream, params);
}

}  // namespace trajmatch::cuda
