// Sums over the elements of a long vector, in float64 and in two launches: each of kReductionBlocks
// blocks sums the elements of one partial sum, neighbouring threads reading neighbouring elements,
// and then one block adds the partial sums. Deterministic.
#pragma once

#include "core/reduction.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {

constexpr int kSumThreads = 256;
static_assert(kReductionBlocks == kSumThreads, "one partial sum per thread");

// The first launch. add(i, sums) adds element i to this thread's kCount sums. `partial` gets
// kReductionBlocks partial sums of each.
template <int kCount, class Add>
__device__ __forceinline__ void sum_part(int64_t size, double* partial, const Add& add) {
  const int64_t block = blockIdx.x, end = block_begin(size, block + 1);
  double sums[kCount] = {};
  for (int64_t i = block_begin(size, block) + threadIdx.x; i < end; i += kSumThreads) add(i, sums);
  block_sum<kSumThreads>(sums);
  if (threadIdx.x != 0) return;
  for (int k = 0; k < kCount; ++k) partial[k * kReductionBlocks + block] = sums[k];
}

// The second launch, of one block: thread 0 gets the sums.
template <int kCount>
__device__ __forceinline__ void sum_parts(const double* partial, double (&sums)[kCount]) {
  for (int k = 0; k < kCount; ++k) sums[k] = partial[k * kReductionBlocks + threadIdx.x];
  block_sum<kSumThreads>(sums);
}

// The gradient of a step size: minus the sum of the adjoint times the direction of the step.
template <class T>
__global__ void __launch_bounds__(kSumThreads) grad_lr_kernel(const double* partial, T* grad_lr) {
  double product[1];
  sum_parts(partial, product);
  if (threadIdx.x == 0) *grad_lr = static_cast<T>(-product[0]);
}

}  // namespace trajmatch::cuda
