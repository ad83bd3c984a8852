// What Python may ask of the student engine besides its operators.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trajmatch {

// Gives back what the calling thread's student engine keeps for its next call on the CPU.
void release_workspace();

// Elements of the tapes that student_unroll keeps for these batches within `tape_bytes`: those of
// the last steps, as many as fit.
int64_t tape_elements(const std::vector<int64_t>& network, const std::vector<int64_t>& batch_sizes,
                      int64_t tape_bytes, bool float64, bool cuda);

// Seconds of the CPU engine's passes between the two calls, by "pass.layer".
void start_profile();
std::vector<std::pair<std::string, double>> stop_profile();

}  // namespace trajmatch
