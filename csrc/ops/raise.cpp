#include <pybind11/pybind11.h>

#include <string>

namespace trajmatch {

[[noreturn]] void raise_type_error(const std::string& message) {
  throw pybind11::type_error(message);
}

}  // namespace trajmatch
