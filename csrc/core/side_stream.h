// A second CUDA stream, for work that other work need not wait for: the gradients of weights,
// beside the gradients of inputs. In a CUDA graph it becomes a branch.
#pragma once

#include <functional>

#include "core/macros.h"

namespace trajmatch::cuda {

// The side stream of the calling thread on the current device. It is never destroyed, not even
// when its thread ends.
Stream side_stream();
// Lets later work on `then` wait for all work that is queued on `first`.
void order(Stream first, Stream then);

#ifdef TRAJMATCH_EMULATED
// Calls `work` when the emulated stream gets to it.
void call(Stream stream, const std::function<void()>& work);
#endif

}  // namespace trajmatch::cuda
