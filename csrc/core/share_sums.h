// Sums of partial results on CUDA: the blocks of a kernel write shares of gradients or losses, by
// image, split or tile, and a second launch adds them. One launch takes the shares of many kernels.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

// sum[i] = shares[0][i] + .. + shares[rows - 1][i] for i in [0, size), of each trajectory; zeros if
// there are no rows. If `channels` is not 0, each share is a weight [3, 3, in, out] with that many
// input and output channels, and the sum is transposed to [out, in, 3, 3].
template <class T>
struct ShareSum {
  const T* shares;  // [rows, size], row_stride elements from one row to the next
  T* sum;           // [size]
  int64_t rows, row_stride, size;
  int64_t shares_stride, sum_stride;  // from one trajectory to the next
  int64_t channels = 0;
};

// No sum may alias a share or another sum.
template <class T>
struct ShareSums {
  static constexpr int kMost = 24;
  ShareSum<T> each[kMost];
  int count;
  int64_t trajectories;
};

namespace cuda {
// Instantiated for float and double.
template <class T>
void launch_sum_shares(const ShareSums<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
