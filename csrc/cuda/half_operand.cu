// Prepares operands: measures the magnitudes of tensors, and scales and rounds them to half
// precision, or rounds them to TF32 (formulas, bytes and floors: core/half_operand.h).
//
// Measuring: kMagnitudes blocks per tensor walk it in a grid-stride loop, and each writes the
// largest finite magnitude it has seen. Rounding: a thread takes four numbers at a time.
// Deterministic. No argument may alias another.

#include "core/half_operand.h"

#include "cuda/elementwise.cuh"
#include "cuda/half_operand.cuh"
#include "cuda/half_precision.cuh"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kMeasureThreads = 1024;
constexpr int64_t kMaxRoundBlocks = 1056;  // one wave: 2048 threads on each of 132 SMs

__device__ __forceinline__ float finite_magnitude(float value) {
  const uint32_t magnitude = __float_as_uint(value) & 0x7fffffffu;
  return magnitude < 0x7f800000u ? __uint_as_float(magnitude) : 0.0f;
}

__device__ __forceinline__ float finite_magnitude(const float4& four) {
  const float low = fmaxf(finite_magnitude(four.x), finite_magnitude(four.y));
  return fmaxf(low, fmaxf(finite_magnitude(four.z), finite_magnitude(four.w)));
}

// The largest finite magnitude among the elements of this thread.
template <class T>
__device__ __forceinline__ float largest_of(const T* x, int64_t count) {
  float largest = 0.0f;
  for_each_element(count, [&](int64_t i) { largest = fmaxf(largest, finite_magnitude(x[i])); });
  return largest;
}

__global__ void __launch_bounds__(kMeasureThreads) measure_magnitudes_kernel(MeasureMagnitudes p) {
  TM_SHARED(float, warps, kMeasureThreads / kWarpSize);
  const int64_t size = p.each[blockIdx.y].size;
  const float* const x = p.each[blockIdx.y].x + blockIdx.z * p.each[blockIdx.y].stride;
  float* const magnitudes = p.each[blockIdx.y].magnitudes;
  const bool in_fours = size % 4 == 0 && reinterpret_cast<uintptr_t>(x) % sizeof(float4) == 0;
  const float largest = warp_max(in_fours ? largest_of(reinterpret_cast<const float4*>(x), size / 4)
                                          : largest_of(x, size));
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
  if (lane == 0) warps[thread / kWarpSize] = largest;
  __syncthreads();
  if (thread >= kWarpSize) return;
  const float of_block = warp_max(warps[lane]);
  if (lane == 0) magnitudes[blockIdx.z * kMagnitudes + blockIdx.x] = of_block;
}

__global__ void __launch_bounds__(kElementwiseThreads) round_operands_kernel(RoundOperands p) {
  // Select by comparison: with a run-time index, the compiler copies the parameters of this kernel
  // to local memory.
  const bool second = blockIdx.y == 1;
  const float* const x = (second ? p.each[1].x : p.each[0].x) + blockIdx.z * p.size;
  float* const to = second ? p.each[1].rounded : p.each[0].rounded;
  const float* const magnitudes = second ? p.each[1].magnitudes : p.each[0].magnitudes;
  if (magnitudes == nullptr) {
    for_each_element(p.size / 4, [&](int64_t i) {
      const float4 four = reinterpret_cast<const float4*>(x)[i];
      reinterpret_cast<float4*>(to + blockIdx.z * p.size)[i] =
          float4{round_to_tf32(four.x), round_to_tf32(four.y), round_to_tf32(four.z),
                 round_to_tf32(four.w)};
    });
    return;
  }
  float* const halves = to + blockIdx.z * p.size / 2;
  const PowerOfTwo scale(scale_exponent(magnitudes, blockIdx.z));
  for_each_element(p.size / 4, [&](int64_t i) {
    const float4 four = reinterpret_cast<const float4*>(x)[i];
    reinterpret_cast<float2*>(halves)[i] =
        float2{__uint_as_float(two_halves(scale.times(four.x), scale.times(four.y))),
               __uint_as_float(two_halves(scale.times(four.z), scale.times(four.w)))};
  });
}

}  // namespace

void launch_measure_magnitudes(const MeasureMagnitudes& params, Stream stream) {
  const dim3 grid(kMagnitudes, static_cast<unsigned>(params.count), grid_size(params.trajectories));
  TM_LAUNCH(measure_magnitudes_kernel, grid, kMeasureThreads, 0, stream, params);
}

void launch_round_operands(const RoundOperands& params, Stream stream) {
  const int64_t blocks = (params.size / 4 + kElementwiseThreads - 1) / kElementwiseThreads;
  const dim3 grid(grid_size(blocks < kMaxRoundBlocks ? blocks : kMaxRoundBlocks),
                  static_cast<unsigned>(params.count), grid_size(params.trajectories));
  TM_LAUNCH(round_operands_kernel, grid, kElementwiseThreads, 0, stream, params);
}

}  // namespace trajmatch::cuda
