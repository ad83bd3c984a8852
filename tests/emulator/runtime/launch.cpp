#include "runtime/launch.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <stdexcept>
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

// The launches of an OS thread, by stream.
struct StreamState {
  bool side = false;
  size_t launches = 0;                        // so far, those that wait included
  std::deque<std::function<void()>> waiting;  // the last of them
  std::map<cudaStream_t, size_t> waited_for;  // launches on other streams that come before
};

std::map<cudaStream_t, StreamState>& streams() {
  static thread_local std::map<cudaStream_t, StreamState> all;
  return all;
}

// Runs the first `count` launches of a stream, as far as they wait.
void run_waiting(StreamState& stream, size_t count) {
  while (!stream.waiting.empty() && stream.launches - stream.waiting.size() < count) {
    const std::function<void()> first = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    first();
  }
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
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
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

struct CUevent_st {
  cudaStream_t stream;
  size_t launches;  // on that stream before the event
};

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  static std::atomic<uintptr_t> number = 0x51de0000;
  *stream = reinterpret_cast<cudaStream_t>(++number);
  streams()[*stream].side = true;
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{};  // lives as long as the process
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, streams()[stream].launches};
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  size_t& waited = streams()[stream].waited_for[event->stream];
  waited = std::max(waited, event->launches);
  run_waiting(streams()[event->stream], event->launches);
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

void queue(const char* name, cudaStream_t stream, std::function<void()> work) {
  StreamState& own = streams()[stream];
  for (const auto& [other, state] : streams()) {
    if (!own.side || state.side || own.waited_for[other] == state.launches) continue;
    throw std::logic_error(std::string("emulator: ") + name +
                           " does not wait for all launches on the main stream");
  }
  ++own.launches;
  own.waiting.push_back(std::move(work));
  if (!own.side || copies_immediately()) run_waiting(own, own.launches);
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
    queue(name, stream,
          [launch = Launch{name, grid, block, shared_bytes, std::move(body)}] { run(launch); });
  }
}

}  // namespace emulator
