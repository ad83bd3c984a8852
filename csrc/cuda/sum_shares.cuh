// Sums of the shares that blocks leave of a result, several results and trajectories in one launch.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch::cuda {

// sum[i] = shares[0][i] + .. + shares[rows - 1][i] for i in [0, size).
struct ShareSum {
  const float* shares;  // rows row_stride apart
  float* sum;           // [size]
  int64_t rows, row_stride, size;
  int64_t shares_stride, sum_stride;  // from one trajectory to the next
};

struct ShareSums {
  static constexpr int kMost = 4;
  ShareSum each[kMost];
  int count;
  int64_t trajectories;
};

void launch_sum_shares(const ShareSums& params, Stream stream);

}  // namespace trajmatch::cuda
