#include "ops/dsa.h"

#include <cmath>

#include "ops/operators.h"

namespace trajmatch {

namespace {

// True if the images [B, C, H, W] are not contiguous but lie in memory as dense [B, H, W, C].
bool is_channels_last(const Tensor& images) {
  if (images.is_contiguous()) return false;
  int64_t stride = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    if (images.size(dim) != 1 && images.stride(dim) != stride) return false;
    stride *= images.size(dim);
  }
  return true;
}

Tensor transformed(const char* op, DsaPass pass, const Tensor& in, const char* argument,
                   const Tensor& parameters) {
  const Check check(op);
  check.floating(in, argument);
  check.dim(in, argument, 4);
  constexpr int64_t kMostPixels = int64_t{1} << 28;  // kernels index pixels with 32 bits
  check.that(in.size(2) <= kMostPixels && in.size(2) * in.size(3) <= kMostPixels, argument,
             "have at most 2^28 pixels each", text(sizes_of(in)));
  check_dsa_parameters(check, parameters, "parameters", in, argument, in.size(0));

  const Device device(in);
  const bool channels_last = is_channels_last(in);
  const Tensor images = channels_last ? in : as_contiguous(in), rows = as_contiguous(parameters);
  Tensor out = empty(sizes_of(in), in, std::nullopt,
                     channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  with_dtype(in, [&](auto type) {
    run_dsa<decltype(type)>(pass, images, read<double>(rows), channels_last, out, device);
  });
  return out;
}

}  // namespace

void check_dsa_parameters(const Check& check, const Tensor& parameters, const char* argument,
                          const Tensor& like, const char* like_name, int64_t count) {
  check.device(parameters, argument, like, like_name);
  check.dtype(parameters, argument, ScalarType::Double);
  check.shape(parameters, argument, {count, kDsaColumns});
  if (parameters.is_cuda()) return;
  const Tensor rows = as_contiguous(parameters);
  const double* value = read<double>(rows);
  for (int64_t i = 0; i < rows.numel(); ++i) {
    const double number = value[i];
    if (!std::isfinite(number)) check.value_error(argument, "be finite", std::to_string(number));
    // Only the first column holds a kind.
    if (i % kDsaColumns != 0) continue;
    if (number < 0 || number >= kDsaKinds || number != std::floor(number)) {
      check.value_error(argument, "have a kind from 0 to " + std::to_string(kDsaKinds - 1),
                        std::to_string(number));
    }
  }
}

Tensor dsa(const Tensor& images, const Tensor& parameters) {
  return transformed("dsa", DsaPass::kForward, images, "images", parameters);
}

Tensor dsa_tangent(const Tensor& images_tangent, const Tensor& parameters) {
  return transformed("dsa_tangent", DsaPass::kTangent, images_tangent, "images_tangent",
                     parameters);
}

Tensor dsa_backward(const Tensor& grad_out, const Tensor& parameters) {
  return transformed("dsa_backward", DsaPass::kBackward, grad_out, "grad_out", parameters);
}

}  // namespace trajmatch
