// Grid size and loop for kernels that process long vectors element by element.
#pragma once

#include <cstdint>

#include "cuda/launch.cuh"

namespace trajmatch::cuda {

constexpr int kElementwiseThreads = 256;

// Enough blocks to fill the largest GPU several times over. For longer vectors, a thread takes
// several elements, one grid apart.
constexpr int64_t kMaxElementwiseBlocks = 4096;

inline unsigned elementwise_blocks(int64_t count) {
  const int64_t blocks = (count + kElementwiseThreads - 1) / kElementwiseThreads;
  return grid_size(blocks < kMaxElementwiseBlocks ? blocks : kMaxElementwiseBlocks);
}

// Calls body(i) for every element of this thread (a grid-stride loop).
template <class Body>
__device__ __forceinline__ void for_each_element(int64_t count, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    body(i);
  }
}

}  // namespace trajmatch::cuda
