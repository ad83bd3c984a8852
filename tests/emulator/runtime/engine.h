// What a running thread asks of the engine below it. Two engines exist, chosen at compile time:
// fibers (the default: one OS thread, four schedules, reports of deadlocks) and, with
// TRAJMATCH_EMULATOR_OS_THREADS, one OS thread per CUDA thread, for ThreadSanitizer.
#pragma once

#include <cstdint>

#include "runtime/block.h"

namespace emulator {

#ifdef TRAJMATCH_EMULATOR_OS_THREADS
constexpr bool kReportsDeadlocks = false;
#else
constexpr bool kReportsDeadlocks = true;
#endif

// The thread that runs; only inside a kernel.
Thread& current();

// Runs every block of the grid. Throws std::runtime_error, with the threads and the lines at which
// they wait, when a block can make no progress or synchronises in a way that CUDA leaves undefined.
void run(const Launch& launch);

// __syncthreads. Stricter than the hardware, which takes exited threads for arrived ones and does
// not compare sites: every thread of the block must arrive, all at the same line.
void sync_block(const Site& site);

// What a warp-wide operation brings to one lane.
struct Collected {
  uint64_t value;   // the payload of the lane it named as its source
  unsigned ballot;  // bit i: lane i takes part, with a payload that is not 0
};

// What a lane receives where CUDA leaves the value undefined: from a source that takes no part.
constexpr uint64_t kUndefined = ~uint64_t{0};  // NaN in every floating type

// A warp-wide operation: waits until every lane of `mask` has arrived with the same mask at the
// same site. All of them must arrive, exited ones too; lanes that the block does not have are
// ignored.
Collected collect(unsigned mask, uint64_t payload, unsigned source, const Site& site);

}  // namespace emulator
