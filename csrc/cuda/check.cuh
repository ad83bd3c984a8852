// Turns CUDA runtime errors into exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace trajmatch::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it; otherwise the next check_launch would report it again
  const char* const mend = error == cudaErrorNoKernelImageForDevice
                               ? "; `trajmatch doctor` prints how to compile them for this GPU"
                               : "";
  throw std::runtime_error(std::string("trajmatch: ") + what +
                           " failed: " + cudaGetErrorString(error) + mend);
}

// Call right after a launch. It reports a refused launch configuration, and also any earlier error
// that was not checked. Errors inside the kernel only show at the next synchronisation.
inline void check_launch(const char* kernel) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) check(error, (std::string("the launch of ") + kernel).c_str());
}

}  // namespace trajmatch::cuda
