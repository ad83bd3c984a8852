// Errors of the CUDA runtime as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace trajmatch::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("trajmatch: ") + what +
                             " failed: " + cudaGetErrorString(error));
  }
}

// Right after a launch. It sees a refused configuration, and any earlier error that nobody has
// looked at; what the kernel itself does wrong shows at the next synchronisation.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check(error, (std::string("the launch of ") + kernel).c_str());
}

}  // namespace trajmatch::cuda
