// The memory and threads of the CPU engine (core/student.h).
#pragma once

#include "core/student.h"

namespace trajmatch {

// The engine memory of the calling thread. It lives as long as the thread: the C library returns
// large blocks to the operating system, and getting them back page by page costs as much as a small
// convolution.
cpu::EngineMemory& memory_of_thread();

// Calls body(i) for all i in [0, count) on the threads of torch.
void on_threads(int64_t count, const cpu::ParallelBody& body);

}  // namespace trajmatch
