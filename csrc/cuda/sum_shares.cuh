// Sums of the shares that blocks leave of a result, several results and trajectories in one launch.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch::cuda {

// sum[i] = shares[0][i] + .. + shares[rows - 1][i] for i in [0, size). Where `channels` is not 0,
// shares are weights [3, 3, in, out] of so many channels each, and the sum is [out, in, 3, 3].
struct ShareSum {
  const float* shares;  // rows row_stride apart
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
