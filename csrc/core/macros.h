// Macros and types shared by every compiler that reads core/.
#pragma once

#ifdef __CUDACC__
#define TM_HD __host__ __device__
#else
#define TM_HD
#endif

#define TM_RESTRICT __restrict__

// The CUDA stream type without <cuda_runtime.h>, so that code built without CUDA can pass it on.
struct CUstream_st;

namespace trajmatch {
using Stream = CUstream_st*;
}
