// Shared by all operators that augment: the check of the parameters, and one pass over images.
#pragma once

#include "core/dsa.h"
#include "ops/checks.h"
#include "ops/run.h"

namespace trajmatch {

// Checks the parameters of `count` images: float64 [count, 5] on the device of `like`. The values
// are only checked on the CPU, because reading them on CUDA would wait for the device.
void check_dsa_parameters(const Check& check, const Tensor& parameters, const char* argument,
                          const Tensor& like, const char* like_name, int64_t count);

// Runs one pass of DSA; `out` is [B, C, H, W]. `in` and `out` have the same memory layout, both
// contiguous or both channels-last. `parameters` is [B, 5]. If given, `sources` selects the image
// of `in` for each output.
template <class T>
void run_dsa(DsaPass pass, const Tensor& in, const double* parameters, bool channels_last,
             const Tensor& out, const Device& device, const BatchIndex& sources = {}) {
  if (out.numel() == 0) return;
  run(Dsa<T>{pass, out.size(0), out.size(1), out.size(2), out.size(3), channels_last, parameters,
             read<T>(in), write<T>(out), sources},
      device);
}

}  // namespace trajmatch
