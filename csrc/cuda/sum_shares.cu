// Adds up the partial sums (shares) that the blocks of other kernels wrote: gradients over images,
// splits or tiles.
//
// A block takes 32 elements: 32 lanes on neighbouring elements times 8 rows of threads. Each row
// adds every eighth share, then the 8 row sums are added in order. All sums are float64.
// Deterministic. No argument may alias another.
//
// Bytes per element: 4 read for every share, 4 written.

#include "cuda/sum_shares.cuh"

#include "cuda/reduce.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kRows = 8;

__global__ void __launch_bounds__(kWarpSize* kRows) sum_shares_kernel(ShareSums p) {
  TM_SHARED(double, sums, kRows* kWarpSize);
  const ShareSum own = p.each[blockIdx.y];
  const int lane = static_cast<int>(threadIdx.x), row = static_cast<int>(threadIdx.y);
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  const float* const shares = own.shares + blockIdx.z * own.shares_stride + element;
  double sum = 0.0;
  if (element < own.size) {
    for (int64_t share = row; share < own.rows; share += kRows) {
      sum += shares[share * own.row_stride];
    }
  }
  sums[row * kWarpSize + lane] = sum;
  __syncthreads();
  if (row > 0 || element >= own.size) return;
  for (int other = 1; other < kRows; ++other) sum += sums[other * kWarpSize + lane];
  int64_t to = element;
  if (own.channels > 0) {
    const int64_t out = element % own.channels, in = element / own.channels % own.channels;
    to = (out * own.channels + in) * 9 + element / (own.channels * own.channels);
  }
  own.sum[blockIdx.z * own.sum_stride + to] = static_cast<float>(sum);
}

}  // namespace

void launch_sum_shares(const ShareSums& params, Stream stream) {
  int64_t largest = 0;
  for (int i = 0; i < params.count; ++i) {
    largest = params.each[i].size > largest ? params.each[i].size : largest;
  }
  const dim3 grid(grid_size((largest + kWarpSize - 1) / kWarpSize),
                  static_cast<unsigned>(params.count), grid_size(params.trajectories));
  TM_LAUNCH(sum_shares_kernel, grid, dim3(kWarpSize, kRows), 0, stream, params);
}

}  // namespace trajmatch::cuda
