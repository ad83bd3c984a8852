#include "core/batch_rows.h"

#include <algorithm>
#include <cstdint>

namespace trajmatch::cpu {

template <class T>
void gather_rows(const GatherRows<T>& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    std::copy_n(p.rows + p.batch.row(i) * p.row_size, p.row_size, p.out + i * p.row_size);
  }
}

template <class T>
void scatter_add_rows(const ScatterAddRows<T>& p, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < p.batch.trajectories * p.batch.count; ++i) {
    const T scale = p.scale[i / p.batch.count];
    const T* grad = p.grad + i * p.row_size;
    T* row = p.rows + p.batch.row(i) * p.row_size;
    for (int64_t column = begin; column < end; ++column) row[column] += scale * grad[column];
  }
}

template void gather_rows(const GatherRows<float>&, int64_t, int64_t);
template void gather_rows(const GatherRows<double>&, int64_t, int64_t);
template void gather_rows(const GatherRows<int64_t>&, int64_t, int64_t);
template void scatter_add_rows(const ScatterAddRows<float>&, int64_t, int64_t);
template void scatter_add_rows(const ScatterAddRows<double>&, int64_t, int64_t);

}  // namespace trajmatch::cpu
