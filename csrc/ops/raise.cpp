// The copy of pybind11 in torch 2.11 and 2.12 refuses this macro, which is for torch's own headers.
#undef TORCH_TARGET_VERSION

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

// libtorch >= 2.13 gives the text of its errors; older ones have only printed it.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace trajmatch {

namespace {

// "aten::contiguous" of `torch_call_dispatcher("aten::contiguous", ...)`, "aoti_torch_get_dim" of
// `aoti_torch_get_dim(...)`.
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
