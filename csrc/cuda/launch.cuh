// Macros for kernel launches and shared memory that both nvcc and the CPU emulator (tests/emulator)
// can compile.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/check.cuh"

// Launches a kernel on `stream`. Throws an exception with the kernel's name if CUDA refuses the
// launch. A kernel with more than one template argument needs parentheses, as in
//   TM_LAUNCH((kernel<T, 4>), ...).
#ifdef __CUDACC__
#define TM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)       \
  do {                                                                  \
    kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__); \
    ::trajmatch::cuda::check_launch(#kernel);                           \
  } while (0)
#else
#define TM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
  do {                                                                                           \
    ::emulator::launch(#kernel, kernel, (grid), (block), (shared_bytes), (stream), __VA_ARGS__); \
    ::trajmatch::cuda::check_launch(#kernel);                                                    \
  } while (0)
#endif

// Put before a loop. TM_UNROLL unrolls it completely, so that arrays indexed by its counter stay in
// registers. TM_NO_UNROLL keeps it rolled.
#ifdef __CUDACC__
#define TM_UNROLL _Pragma("unroll")
#define TM_NO_UNROLL _Pragma("unroll 1")
#else
#define TM_UNROLL
#define TM_NO_UNROLL
#endif

namespace trajmatch::cuda {

// Converts a number of blocks to a grid dimension. It must be at least 1 and at most 2^31 - 1.
inline unsigned grid_size(int64_t blocks) {
  if (blocks < 1 || blocks > INT32_MAX) {
    throw std::length_error("trajmatch: a launch of " + std::to_string(blocks) +
                            " blocks was asked for, but a grid has 1 to 2147483647");
  }
  return static_cast<unsigned>(blocks);
}

// An attribute of the current device. Without a device, as in a forecast on another machine, the
// result is `usual`: what most GPUs have (all but sm_75, in the two functions below).
inline int device_attribute(cudaDeviceAttr attribute, int usual) {
  int device = 0, value = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess;
  if (!known) cudaGetLastError();  // clears the error
  return known ? value : usual;
}

// True if a block may use this much dynamic shared memory on the current device.
inline bool has_dynamic_shared(size_t bytes) {
  return bytes <=
         static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, INT32_MAX));
}

// True if the current device has the tensor core products of cuda/tensor_core.cuh.
inline bool has_tensor_cores() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor, 8) >= 8;
}

// Required before launching `kernel` with more than the default 48 KiB of dynamic shared memory.
template <class Kernel>
void allow_dynamic_shared(Kernel kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "the request for dynamic shared memory");
}

}  // namespace trajmatch::cuda

// Declares `name`: an array of `count` elements in the block's shared memory.
#ifdef __CUDACC__
#define TM_SHARED(T, name, count) __shared__ T name[count]
#else
#define TM_SHARED(T, name, count)   \
  static const char name##_tag = 0; \
  T* const name = static_cast<T*>(  \
      ::emulator::current().block->shared.variable(&name##_tag, sizeof(T) * (count)))
#endif

// Declares `name`: the dynamic shared memory, whose size is set at launch, as elements of type T.
#ifdef __CUDACC__
#define TM_DYNAMIC_SHARED(T, name)                                          \
  extern __shared__ __align__(16) unsigned char trajmatch_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(trajmatch_dynamic_shared)
#else
#define TM_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::emulator::current().block->shared.dynamic())
#endif
