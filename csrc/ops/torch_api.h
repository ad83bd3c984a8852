// The libtorch interface of the project, on the stable ABI of torch 2.11. The rest of csrc/ops uses
// tensors mostly through these functions, so that another interface would change little outside
// this file.
#pragma once

#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>

namespace trajmatch {

// Throws std::runtime_error with the error text of PyTorch, which trajmatch/memory.py reads.
[[noreturn]] void raise_torch_error(const char* call);

inline void check_torch(int32_t error, const char* call) {
  if (error != TORCH_SUCCESS) raise_torch_error(call);
}

}  // namespace trajmatch

// Errors of all calls in the torch headers below go through check_torch, because their own macro
// would drop the text. Therefore every source file must include this file before any torch header.
#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)         \
  {                                          \
    ::trajmatch::check_torch((call), #call); \
  }

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "core/macros.h"

// Defined in libtorch_cuda, which a CPU build of torch does not have.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                        void** stream);
struct CUDAStreamGuardOpaque;
__attribute__((weak)) AOTITorchError aoti_torch_create_cuda_stream_guard(
    void* stream, int32_t device_index, CUDAStreamGuardOpaque** guard);
__attribute__((weak)) AOTITorchError
aoti_torch_delete_cuda_stream_guard(CUDAStreamGuardOpaque* guard);
}

namespace trajmatch {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;
using Doubles = std::vector<double>;

template <size_t count>
inline void call_torch(const char* op, const char* overload,
                       std::array<StableIValue, count>& stack) {
  check_torch(torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION), op);
}

inline IntHeaderOnlyArrayRef ref(const Ints& values) { return {values.data(), values.size()}; }

inline Ints sizes_of(const Tensor& tensor) {
  const IntHeaderOnlyArrayRef sizes = tensor.sizes();
  return Ints(sizes.begin(), sizes.end());
}

// Uninitialised tensor on the device of `like`, with the dtype of `like` unless `dtype` is given.
inline Tensor empty(const Ints& sizes, const Tensor& like,
                    std::optional<ScalarType> dtype = std::nullopt,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(ref(sizes), dtype ? *dtype : like.scalar_type(), std::nullopt,
                              like.device(), std::nullopt, format);
}

inline Tensor empty_channels_last(const Ints& sizes, const Tensor& like) {
  return empty(sizes, like, std::nullopt, MemoryFormat::ChannelsLast);
}

inline Tensor zeros(const Ints& sizes, const Tensor& like) {
  Tensor result = empty(sizes, like);
  torch::stable::zero_(result);
  return result;
}

inline Tensor as_contiguous(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

inline OptionalTensor as_contiguous(const OptionalTensor& tensor) {
  OptionalTensor result;
  if (tensor) result = as_contiguous(*tensor);
  return result;
}

inline Tensor as_channels_last(const Tensor& tensor) {
  return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

// A view of the memory of `base`, starting `offset` elements after its first element.
inline Tensor view(const Tensor& base, int64_t offset, const Ints& sizes, const Ints& strides) {
  AtenTensorHandle result = nullptr;
  check_torch(aoti_torch__reinterpret_tensor(base.get(), static_cast<int64_t>(sizes.size()),
                                             sizes.data(), strides.data(), offset, &result),
              "view");
  return Tensor(result);
}

inline Tensor vector_view(const Tensor& base, int64_t offset, int64_t size) {
  return view(base, offset, {size}, {1});
}

// One of `parts` equal parts of a tensor along its first dimension.
inline Tensor part_of(const Tensor& all, int64_t part, int64_t parts) {
  Ints sizes = sizes_of(all);
  const IntHeaderOnlyArrayRef strides = all.strides();
  sizes[0] /= parts;
  return view(all, part * sizes[0] * strides[0], sizes, Ints(strides.begin(), strides.end()));
}

// A contiguous range of elements of a contiguous tensor. Unlike a view, it costs no allocation.
// Loops use it for the vectors of a step, and make a tensor from it when they call a library.
struct VectorPart {
  Tensor base;
  int64_t begin, size;

  static VectorPart whole(const Tensor& tensor) { return {tensor, 0, tensor.numel()}; }
  Tensor tensor() const { return vector_view(base, begin, size); }
};

inline void copy(Tensor& to, const Tensor& from) { torch::stable::copy_(to, from); }

inline Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

// PyTorch's convolution of square images with square kernels.
inline Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          int64_t stride, int64_t padding) {
  using torch::stable::detail::from;
  const Ints strides{stride, stride}, paddings{padding, padding}, ones{1, 1}, none{0, 0};
  std::array<StableIValue, 9> stack{from(input),        from(weight),        from(bias),
                                    from(ref(strides)), from(ref(paddings)), from(ref(ones)),
                                    from(false),        from(ref(none)),     from(int64_t{1})};
  call_torch("aten::convolution", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Selects the gradients of a convolution to compute; the others come back undefined.
struct ConvolutionMask {
  bool input, weight, bias;
};

inline std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad_output,
                                                               const Tensor& input,
                                                               const Tensor& weight, int64_t stride,
                                                               int64_t padding,
                                                               ConvolutionMask wanted) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Ints strides{stride, stride}, paddings{padding, padding}, ones{1, 1}, none{0, 0},
      bias_sizes{weight.size(0)};
  const std::optional<IntHeaderOnlyArrayRef> bias(ref(bias_sizes));
  const bool mask[3] = {wanted.input, wanted.weight, wanted.bias};
  std::array<StableIValue, 11> stack{from(grad_output),
                                     from(input),
                                     from(weight),
                                     from(bias),
                                     from(ref(strides)),
                                     from(ref(paddings)),
                                     from(ref(ones)),
                                     from(false),
                                     from(ref(none)),
                                     from(int64_t{1}),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask, 3))};
  call_torch("aten::convolution_backward", "", stack);
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2])};
}

// Means over windows that do not overlap. Leftover rows and columns are dropped.
inline Tensor mean_of_windows(const Tensor& input, int64_t window) {
  using torch::stable::detail::from;
  const Ints sides{window, window}, none{0, 0};
  std::array<StableIValue, 7> stack{from(input),
                                    from(ref(sides)),
                                    from(ref(sides)),
                                    from(ref(none)),
                                    from(false),
                                    from(true),
                                    from(std::optional<int64_t>())};
  call_torch("aten::avg_pool2d", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor mean_of_windows_backward(const Tensor& grad_output, const Tensor& input,
                                       int64_t window) {
  using torch::stable::detail::from;
  const Ints sides{window, window}, none{0, 0};
  std::array<StableIValue, 8> stack{
      from(grad_output), from(input), from(ref(sides)), from(ref(sides)),
      from(ref(none)),   from(false), from(true),       from(std::optional<int64_t>())};
  call_torch("aten::avg_pool2d_backward", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor mm(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(a), from(b)};
  call_torch("aten::mm", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(input), from(weight), from(bias)};
  call_torch("aten::linear", "", stack);
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

inline Tensor sum_over_rows(const Tensor& matrix) {
  const Ints dims{0};
  return torch::stable::sum(matrix, std::optional<IntHeaderOnlyArrayRef>(ref(dims)));
}

inline Tensor sum_all(const Tensor& tensor) { return torch::stable::sum(tensor); }

inline void fill(Tensor& tensor, double value) { torch::stable::fill_(tensor, value); }

// Turns off gradient recording: engine operators compute their own derivatives, so the operators
// they call must not record a graph.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// True if an operator takes its CUDA path for this tensor. The build that tests this path without a
// GPU (tests/emulator/host) takes it for every tensor: kernel launches go to the emulator, and
// calls to PyTorch run on the CPU, where the tensors are.
inline bool on_cuda([[maybe_unused]] const Tensor& tensor) {
#ifdef TRAJMATCH_EMULATED
  return true;
#else
  return tensor.is_cuda();
#endif
}

// The device an operator runs on. Makes the device of the tensor current and holds its current
// stream.
class Device {
 public:
  explicit Device(const Tensor& tensor) : cuda_(on_cuda(tensor)) {
    if (!tensor.is_cuda()) return;
    guard_.emplace(tensor.get_device_index());
    void* stream = nullptr;
    check_torch(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream), "stream");
    stream_ = static_cast<Stream>(stream);
  }
  bool is_cuda() const { return cuda_; }
  Stream stream() const { return stream_; }

 private:
  bool cuda_;
  Stream stream_ = nullptr;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

// Makes another stream current on the device of a CUDA tensor, for calls of PyTorch.
class StreamGuard {
 public:
  StreamGuard(Stream stream, const Tensor& tensor) {
    check_torch(aoti_torch_create_cuda_stream_guard(stream, tensor.get_device_index(), &guard_),
                "stream guard");
  }
  ~StreamGuard() { aoti_torch_delete_cuda_stream_guard(guard_); }
  StreamGuard(const StreamGuard&) = delete;
  StreamGuard& operator=(const StreamGuard&) = delete;

 private:
  CUDAStreamGuardOpaque* guard_ = nullptr;
};

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
const T* read(const OptionalTensor& tensor) {
  return tensor ? read<T>(*tensor) : nullptr;
}
template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T>
T* write(const OptionalTensor& tensor) {
  return tensor ? write<T>(*tensor) : nullptr;
}
template <class T>
const T* read(const VectorPart& part) {
  return read<T>(part.base) + part.begin;
}
template <class T>
T* write(const VectorPart& part) {
  return write<T>(part.base) + part.begin;
}

// Calls body(T()), where T is the C++ type of a float32 or float64 tensor.
template <class Body>
auto with_dtype(const Tensor& tensor, const Body& body) {
  return tensor.scalar_type() == ScalarType::Double ? body(double()) : body(float());
}

}  // namespace trajmatch
