#include "runtime/launch.h"

#include <map>
#include <utility>

#include "runtime/engine.h"
#include "runtime/limits.h"
#include "runtime/options.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;

bool valid_configuration(dim3 grid, dim3 block) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  return threads > 0 && threads <= emulator::kMaxThreads && block.z <= emulator::kMaxBlockZ &&
         grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= emulator::kMaxGridX &&
         grid.y <= emulator::kMaxGridYZ && grid.z <= emulator::kMaxGridYZ;
}

// Dynamic shared memory that each kernel may have, where it is not the default.
std::map<const void*, size_t>& allowances() {
  static thread_local std::map<const void*, size_t> allowed;
  return allowed;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int kib = static_cast<int>(emulator::options().shared_kib);
  // Turing, the last without the tensor cores that the kernels use, has 64 KiB.
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? (kib > 64 ? 8 : 7) : 1024 * kib;
  return cudaSuccess;
}

namespace emulator {

std::vector<LaunchRecord>& launch_log() {
  static thread_local std::vector<LaunchRecord> log;
  return log;
}

cudaError_t allow_dynamic_shared(const void* kernel, int bytes) {
  if (bytes < 0 || static_cast<size_t>(bytes) > options().shared_kib * 1024) {
    return last_error = cudaErrorInvalidValue;
  }
  allowances()[kernel] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, std::function<void()> body) {
  launch_log().push_back({name, stream});
  const auto found = allowances().find(kernel);
  const size_t allowed = found == allowances().end() ? kStaticSharedBytes : found->second;
  if (!valid_configuration(grid, block)) {
    last_error = cudaErrorInvalidConfiguration;
  } else if (shared_bytes > allowed) {
    last_error = cudaErrorInvalidValue;
  } else {
    run({name, grid, block, shared_bytes, std::move(body)});
  }
}

}  // namespace emulator
