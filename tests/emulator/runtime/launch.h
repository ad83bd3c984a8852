// Launches, and the errors that a CUDA runtime would return for them.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "runtime/types.h"

struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct CUevent_st;
using cudaEvent_t = CUevent_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoKernelImageForDevice = 209,
};

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum : unsigned { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };

const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();  // also forgets it
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Streams that are made here are side streams; every other stream is a main stream, whose launches
// run at once. A launch on a side stream runs at once or as late as its events allow, as the
// schedule says (runtime/options.h). Stricter than CUDA: it must itself wait for every earlier
// launch on the main streams of its thread. Launches of PyTorch are not counted.
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);

namespace emulator {

// The launches of this OS thread so far, refused ones included; tests clear it.
struct LaunchRecord {
  std::string kernel;
  cudaStream_t stream;
};
std::vector<LaunchRecord>& launch_log();

// Queues work on a stream, as a launch does.
void queue(const char* name, cudaStream_t stream, std::function<void()> work);

// Runs the kernel where the configuration is one that every supported GPU takes; else leaves the
// error for cudaGetLastError().
void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, std::function<void()> body);

cudaError_t allow_dynamic_shared(const void* kernel, int bytes);

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  // As on a GPU, every thread starts from the same copies of the arguments.
  const auto copies =
      std::make_shared<std::tuple<Parameters...>>(std::forward<Arguments>(arguments)...);
  launch(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
         std::function<void()>([copies, kernel] { std::apply(kernel, *copies); }));
}

}  // namespace emulator

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  return emulator::allow_dynamic_shared(reinterpret_cast<const void*>(kernel), value);
}
