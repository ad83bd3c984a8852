#include "runtime/options.h"

#include <charconv>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace emulator {
namespace {

unsigned environment_number(const char* name, unsigned largest) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  const std::string_view digits(text);
  unsigned value = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value);
  if (error != std::errc() || end != digits.end() || value > largest) {
    throw std::invalid_argument(std::string(name) + " must be a number from 0 to " +
                                std::to_string(largest) + ", but is '" + text + "'");
  }
  return value;
}

Options read_environment() {
  Options read;
  read.schedule = static_cast<Schedule>(environment_number("TRAJMATCH_EMULATOR_ORDER", 3));
  read.given = std::getenv("TRAJMATCH_EMULATOR_ORDER") != nullptr;
  read.seed = environment_number("TRAJMATCH_EMULATOR_SEED", ~0u);
  const unsigned shared_kib = environment_number("TRAJMATCH_EMULATOR_SHARED_KIB", 227);
  if (shared_kib > 0) read.shared_kib = shared_kib;
  return read;
}

}  // namespace

Options& options() {
  static Options current = read_environment();
  return current;
}

}  // namespace emulator
