// Argument checks of the operators. All messages have the form
//   trajmatch::<op>: expected <argument> to <property>, but got <value>
// Wrong shapes, ranges and devices raise ValueError in Python, wrong dtypes raise TypeError.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "ops/torch_api.h"

namespace trajmatch {

// Raises TypeError in Python. It is defined in raise.cpp with pybind11, because no standard
// exception translates to TypeError.
[[noreturn]] void raise_type_error(const std::string& message);

inline std::string text(const Ints& values) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
  out << ']';
  return out.str();
}

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    default:
      return "dtype number " + std::to_string(static_cast<int>(type));
  }
}

inline std::string device_name(const Tensor& tensor) {
  return tensor.is_cuda() ? "cuda:" + std::to_string(tensor.get_device_index()) : "cpu";
}

// Checks of one operator's arguments. `like` is the tensor to agree with, `like_name` its name in
// messages.
class Check {
 public:
  explicit Check(const char* op) : op_(op) {}

  [[noreturn]] void value_error(const std::string& argument, const std::string& property,
                                const std::string& value) const {
    throw std::invalid_argument(message(argument, property, value));
  }

  void that(bool condition, const char* argument, const std::string& property,
            const std::string& value) const {
    if (!condition) value_error(argument, property, value);
  }

  void floating(const Tensor& tensor, const char* argument) const {
    const ScalarType type = tensor.scalar_type();
    if (type != ScalarType::Float && type != ScalarType::Double) {
      raise_type_error(message(argument, "be float32 or float64", dtype_name(type)));
    }
  }

  void dtype(const Tensor& tensor, const char* argument, ScalarType wanted) const {
    if (tensor.scalar_type() != wanted) {
      raise_type_error(
          message(argument, "be " + dtype_name(wanted), dtype_name(tensor.scalar_type())));
    }
  }

  void shape(const Tensor& tensor, const char* argument, const Ints& wanted) const {
    if (sizes_of(tensor) != wanted) {
      value_error(argument, "have shape " + text(wanted), text(sizes_of(tensor)));
    }
  }

  void dim(const Tensor& tensor, const char* argument, int64_t wanted) const {
    if (tensor.dim() != wanted) {
      value_error(argument, "have " + std::to_string(wanted) + " dimensions",
                  text(sizes_of(tensor)));
    }
  }

  void device(const Tensor& tensor, const char* argument, const Tensor& like,
              const char* like_name) const {
    if (device_name(tensor) != device_name(like)) {
      value_error(argument, "be on " + device_name(like) + " (the device of " + like_name + ")",
                  device_name(tensor));
    }
  }

  // Checks dtype, device and shape.
  void same(const Tensor& tensor, const char* argument, const Tensor& like, const char* like_name,
            const Ints& wanted) const {
    device(tensor, argument, like, like_name);
    dtype(tensor, argument, like.scalar_type());
    shape(tensor, argument, wanted);
  }
  void same(const Tensor& tensor, const char* argument, const Tensor& like,
            const char* like_name) const {
    same(tensor, argument, like, like_name, sizes_of(like));
  }

 private:
  std::string message(const std::string& argument, const std::string& property,
                      const std::string& value) const {
    return "trajmatch::" + op_ + ": expected " + argument + " to " + property + ", but got " +
           value;
  }
  std::string op_;
};

// Checks the labels of `batch` images: class indices [batch] in [0, classes), or soft labels
// [batch, classes]. The values of class indices are only checked on the CPU.
void check_labels(const Check& check, const Tensor& labels, const char* argument,
                  const Tensor& like, const char* like_name, int64_t batch, int64_t classes);

}  // namespace trajmatch
