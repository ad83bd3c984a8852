// What Python may ask of the student engine besides its operators.
#pragma once

namespace trajmatch {

// Gives back what the calling thread's student engine keeps for its next call on the CPU.
void release_workspace();

}  // namespace trajmatch
