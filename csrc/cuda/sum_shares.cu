// Adds up the partial sums (shares) that the blocks of other kernels wrote (core/share_sums.h).
//
// A block takes 32 elements of one sum: 32 lanes on neighbouring elements times 8 rows of threads.
// Each row adds every eighth share, then the 8 row sums are added in order. If there are few
// shares, a thread takes an element, and the block 256 of them. All sums are float64, in which an
// infinite share stays infinite. Every sum has as many blocks as it needs. Deterministic.
//
// Bytes per element in float32: 4 read for every share, 4 written.

#include "core/share_sums.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kRows = 8, kThreads = kRows * kWarpSize;
constexpr int64_t kFewShares = 16;

template <class T>
TM_HD int64_t elements_of_block(const ShareSum<T>& sum) {
  return sum.rows <= kFewShares ? kThreads : kWarpSize;
}

template <class T>
struct Launch {
  ShareSums<T> sums;
  unsigned first_block[ShareSums<T>::kMost];  // of each sum
};

template <class T>
__global__ void __launch_bounds__(kThreads) sum_shares_kernel(Launch<T> p) {
  TM_SHARED(double, sums, kThreads);
  int which = 0;
  while (which + 1 < p.sums.count && blockIdx.x >= p.first_block[which + 1]) ++which;
  const ShareSum<T> own = p.sums.each[which];
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  const bool few = own.rows <= kFewShares;
  const int64_t element = (blockIdx.x - p.first_block[which]) * elements_of_block(own) +
                          (few ? row * kWarpSize : 0) + lane;
  const T* const shares = own.shares + blockIdx.z * own.shares_stride + element;
  double sum = 0.0;
  if (element < own.size) {
    const int step = few ? 1 : kRows;
    for (int64_t share = few ? 0 : row; share < own.rows; share += step) {
      sum += shares[share * own.row_stride];
    }
  }
  if (!few) {
    sums[row * kWarpSize + lane] = sum;
    __syncthreads();
    if (row > 0) return;
    for (int other = 1; other < kRows; ++other) sum += sums[other * kWarpSize + lane];
  }
  if (element >= own.size) return;
  int64_t to = element;
  if (own.channels > 0) {
    const int64_t out = element % own.channels, in = element / own.channels % own.channels;
    to = (out * own.channels + in) * 9 + element / (own.channels * own.channels);
  }
  own.sum[blockIdx.z * own.sum_stride + to] = static_cast<T>(sum);
}

}  // namespace

template <class T>
void launch_sum_shares(const ShareSums<T>& params, Stream stream) {
  Launch<T> launch{params, {}};
  int64_t blocks = 0;
  for (int i = 0; i < params.count; ++i) {
    launch.first_block[i] = static_cast<unsigned>(blocks);
    const int64_t each = elements_of_block(params.each[i]);
    blocks += (params.each[i].size + each - 1) / each;
  }
  const dim3 grid(grid_size(blocks), 1, grid_size(params.trajectories));
  TM_LAUNCH(sum_shares_kernel<T>, grid, dim3(kWarpSize, kRows), 0, stream, launch);
}

template void launch_sum_shares(const ShareSums<float>&, Stream);
template void launch_sum_shares(const ShareSums<double>&, Stream);

}  // namespace trajmatch::cuda
