#include "cpu/student/profile.h"

#include <iterator>

#include "core/student_host.h"

namespace trajmatch::cpu {

std::vector<std::pair<std::string, double>> Profile::stop() {
  static const char* const names[] = {"pack",
                                      "clear",
                                      "read",
                                      "transform",
                                      "product",
                                      "transform back",
                                      "norm",
                                      "classify",
                                      "norm backward",
                                      "transform gradient",
                                      "weight product",
                                      "input product",
                                      "transform gradient back",
                                      "write",
                                      "wait",
                                      "unpack"};
  static_assert(std::size(names) == static_cast<size_t>(Pass::kCount));
  on_ = false;
  std::vector<std::pair<std::string, double>> result;
  for (int64_t layer = 0; layer < kProfiledLayers; ++layer) {
    for (int pass = 0; pass < static_cast<int>(Pass::kCount); ++pass) {
      const double seconds = seconds_[layer][pass];
      if (seconds > 0) result.emplace_back(names[pass] + ("." + std::to_string(layer)), seconds);
    }
  }
  return result;
}

}  // namespace trajmatch::cpu

namespace trajmatch {

void start_profile() { cpu::profile().start(); }
std::vector<std::pair<std::string, double>> stop_profile() { return cpu::profile().stop(); }

}  // namespace trajmatch
