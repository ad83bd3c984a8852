// What the CPU engine (core/student.h) runs on.
#pragma once

#include "core/student.h"

namespace trajmatch {

// The C library returns large blocks to the kernel, and getting them back, page by page, costs as
// much as a small convolution: the engine's memory lives as long as its thread.
cpu::EngineMemory& memory_of_thread();

// Calls body(i) for all i of [0, count) on torch's threads.
void on_threads(int64_t count, const cpu::ParallelBody& body);

}  // namespace trajmatch
