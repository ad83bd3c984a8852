// The pybind11 bundled with torch 2.11 and 2.12 does not compile with this macro, which is meant
// for the torch headers.
#undef TORCH_TARGET_VERSION

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

// libtorch >= 2.13 returns the text of its errors; older versions only print it.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace trajmatch {

namespace {

// Extracts the name of a call: "aten::contiguous" from `torch_call_dispatcher("aten::contiguous",
// ...)`, "aoti_torch_get_dim" from `aoti_torch_get_dim(...)`.
std::string name_of(const std::string& call) {
  const size_t quote = call.find('"');
  if (quote == std::string::npos) return call.substr(0, call.find('('));
  return call.substr(quote + 1, call.find('"', quote + 1) - quote - 1);
}

}  // namespace

[[noreturn]] void raise_type_error(const std::string& message) {
  throw pybind11::type_error(message);
}

[[noreturn]] void raise_torch_error(const char* call) {
  const std::string why = &torch_exception_get_what_without_backtrace != nullptr
                              ? torch_exception_get_what_without_backtrace()
                              : "out of memory, or what PyTorch has printed: before its release "
                                "2.13 it does not say";
  throw std::runtime_error("trajmatch: torch call failed: " + name_of(call) + ": " + why);
}

}  // namespace trajmatch
