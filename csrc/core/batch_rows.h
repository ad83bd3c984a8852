// Student batches: gathers the rows of a matrix [n, R] that indices select, and scatters gradients
// back to them.
//   gather:   out[i] = rows[index[i]]
//   scatter:  rows[index[i]] += scale * grad[i], where repeated rows are added in the order of i
// K trajectories (students trained side by side) may share a call: each has n rows and B entries of
// its own. One gather may serve the batches of S steps. On CUDA, indices are not checked before:
// one outside [0, n) gathers NaN (-1 for integers, which is not a valid class) and scatters
// nothing.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

// Rows that batches select. With several trajectories, all batches have the same size.
struct BatchIndex {
  const int64_t* index;      // [S, K, B], values in [0, n)
  int64_t count, num_rows;   // B, n
  int64_t trajectories = 1;  // K

  // Row of an entry, counted through all trajectories; -1 if its index is outside [0, n).
  TM_HD int64_t row(int64_t entry) const {
    const int64_t own = index[entry];
    if (own < 0 || own >= num_rows) return -1;
    return trajectories == 1 ? own : entry / count % trajectories * num_rows + own;
  }
};

template <class T>
struct GatherRows {
  BatchIndex batch;
  int64_t entries, row_size;  // S K B, R
  const T* rows;              // [K, n, R]
  T* out;                     // [S, K, B, R]
};

// Scatter of the batch of one step (S = 1).
template <class T>
struct ScatterAddRows {
  BatchIndex batch;
  int64_t row_size;  // R
  const T* grad;     // [K, B, R]
  const T* scale;    // [K], on the same device as the rows
  T* rows;           // [K, n, R], updated in place
};

namespace cpu {
template <class T>
void gather_rows(const GatherRows<T>& params, int64_t begin, int64_t end);  // entries [begin, end)
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
