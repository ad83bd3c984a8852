// Adds up the partial sums (shares) that the blocks of another kernel wrote, for several results
// and trajectories in one launch.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch::cuda {

// sum[i] = shares[0][i] + .. + shares[rows - 1][i] for i in [0, size). If `channels` is not 0, each
// share is a weight [3, 3, in, out] with that many input and output channels, and the sum is
// transposed to [out, in, 3, 3].
struct ShareSum {
  const float* shares;  // [rows, size], row_stride elements from one row to the next
  float* sum;           // [size]
  int64_t rows, row_stride, size;
  int64_t shares_stride, sum_stride;  // from one trajectory to the next
  int64_t channels = 0;
};

struct ShareSums {
  static constexpr int kMost = 4;
  ShareSum each[kMost];
  int count;
  int64_t trajectories;
};

void launch_sum_shares(const ShareSums& params, Stream stream);

}  // namespace trajmatch::cuda
