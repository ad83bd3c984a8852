// What csrc/bindings.cpp gives to Python of the CPU engine, which the emulated module is without: a
// name that is bound when the module loads must exist, one that is only called need not.

#include <stdexcept>

#include "core/student_host.h"

namespace trajmatch {

void start_profile() { throw std::logic_error("the emulated module has no CPU engine"); }
std::vector<std::pair<std::string, double>> stop_profile() {
  throw std::logic_error("the emulated module has no CPU engine");
}

}  // namespace trajmatch
