// Student batches: gathers rows of a matrix [n, R] by index, and scatters gradients back to them.
//   gather:   out[i] = rows[index[i]]
//   scatter:  rows[index[i]] += scale * grad[i], where repeated rows are added in the order of i
// K trajectories (students trained side by side) may share a call: each has its own n rows, and its
// own B entries that name them. On CUDA the indices have not been checked beforehand. An
// index outside [0, n) gathers NaN (-1 for integers, which is not a valid class) and scatters
// nothing.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

template <class T>
struct GatherRows {
  int64_t count, num_rows, row_size;  // B, n, R
  const T* rows;                      // [K, n, R]
  const int64_t* index;               // [K, B], values in [0, n)
  T* out;                             // [K, B, R]
  int64_t trajectories = 1;           // K
};

template <class T>
struct ScatterAddRows {
  int64_t count, num_rows, row_size;  // B, n, R
  const T* grad;                      // [K, B, R]
  const int64_t* index;               // [K, B], values in [0, n)
  const T* scale;                     // [K], on the same device as the rows
  T* rows;                            // [K, n, R], updated in place
  int64_t trajectories = 1;           // K
};

namespace cpu {
template <class T>
void gather_rows(const GatherRows<T>& params, int64_t begin, int64_t end);  // rows of out, K B
// Columns [begin, end) of every row: splitting by column keeps equal indices in one thread.
template <class T>
void scatter_add_rows(const ScatterAddRows<T>& params, int64_t begin, int64_t end);
}  // namespace cpu

namespace cuda {
template <class T>
void launch_gather_rows(const GatherRows<T>& params, Stream stream);  // float, double, int64_t
template <class T>
void launch_scatter_add_rows(const ScatterAddRows<T>& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
