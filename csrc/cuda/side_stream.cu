#include "core/side_stream.h"

#include <map>

#include "cuda/check.cuh"

namespace trajmatch::cuda {
namespace {

// The side stream of a thread on one device, and the event that orders it.
struct Side {
  cudaStream_t stream = nullptr;
  // One event serves every order(): a wait refers to the last record before it.
  cudaEvent_t event = nullptr;
};

const Side& side_of_device() {
  static thread_local std::map<int, Side> sides;
  int device = 0;
  check(cudaGetDevice(&device), "the request for the current device");
  Side& side = sides[device];
  if (side.event == nullptr) {
    check(cudaStreamCreateWithFlags(&side.stream, cudaStreamNonBlocking), "the making of a stream");
    check(cudaEventCreateWithFlags(&side.event, cudaEventDisableTiming), "the making of an event");
  }
  return side;
}

}  // namespace

Stream side_stream() { return side_of_device().stream; }

void order(Stream first, Stream then) {
  const cudaEvent_t event = side_of_device().event;
  check(cudaEventRecord(event, first), "the recording of an event");
  check(cudaStreamWaitEvent(then, event, 0), "the wait for an event");
}

}  // namespace trajmatch::cuda
