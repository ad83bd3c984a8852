// Functions of the student engine that Python calls besides the operators.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trajmatch {

// Frees the memory that the CPU engine keeps for the next call: that of the calling thread, and
// that of freed tapes.
void release_workspace();

// Number of elements in the tapes that student_unroll keeps for these batches within `tape_bytes`.
// It keeps the tapes of the last steps, as many as fit.
int64_t tape_elements(const std::vector<int64_t>& network, const std::vector<int64_t>& batch_sizes,
                      int64_t tape_bytes, bool float64, bool cuda, int64_t trajectories);

// True if the CPU engine takes a few images at a time through the whole network.
bool runs_by_images(const std::vector<int64_t>& network);

// Seconds spent in the passes of the CPU engine between the two calls, by "pass.layer".
void start_profile();
std::vector<std::pair<std::string, double>> stop_profile();

}  // namespace trajmatch
