// Gather of student batches from rows of a matrix, and its adjoint, a scatter that adds (formulas:
// core/batch_rows.h).
//
// One block per batch entry and tile of kThreads columns, neighbouring threads on neighbouring
// columns. The scatter is deterministic without atomics: of the entries that name the same row, the
// first one's block adds them all, in the order of the batch; the others' blocks leave at once. To
// find them each warp compares 32 indices at a time. `rows` of the scatter aliases nothing.
//
// Bytes per element in float32: gather 4 read + 4 written, scatter 8 read + 4 written. At the
// 4.3 TB/s of an H200, a batch of 100 images of 3 x 32 x 32 takes 0.6 and 0.9 microseconds; the
// indices stay in cache.

#include <type_traits>

#include "core/batch_rows.h"
#include "cuda/reduce.cuh"

namespace trajmatch::cuda {
namespace {

constexpr int kThreads = 256;

// Tiles of a row. Blocks are numbered entry by entry: one dimension of a grid holds any batch.
inline unsigned column_tiles(int64_t row_size) {
  return grid_size((row_size + kThreads - 1) / kThreads);
}

template <class T>
__device__ __forceinline__ T no_value() {
  return std::is_integral<T>::value ? T(-1) : T(nan(""));
}

template <class T>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(GatherRows<T> p, unsigned tiles) {
  const int64_t entry = blockIdx.x / tiles;
  const int64_t column = static_cast<int64_t>(blockIdx.x % tiles) * kThreads + threadIdx.x;
  if (column >= p.row_size) return;
  const int64_t row = p.index[entry];
  p.out[entry * p.row_size + column] =
      row >= 0 && row < p.num_rows ? p.rows[row * p.row_size + column] : no_value<T>();
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scatter_add_rows_kernel(ScatterAddRows<T> p, unsigned tiles) {
  const int64_t entry = blockIdx.x / tiles;
  const int64_t column = static_cast<int64_t>(blockIdx.x % tiles) * kThreads + threadIdx.x;
  const int64_t row = p.index[entry];
  if (row < 0 || row >= p.num_rows) return;
  const int64_t lane = threadIdx.x % kWarpSize;
  const T scale = *p.scale;
  T* const to = p.rows + row * p.row_size + column;
  T sum = T(0);
  for (int64_t first = 0; first < p.count; first += kWarpSize) {
    const int64_t other = first + lane;
    unsigned same = __ballot_sync(kFullWarp, other < p.count && p.index[other] == row);
    for (; same != 0; same &= same - 1) {
      const int64_t from = first + __ffs(static_cast<int>(same)) - 1;
      if (from < entry) return;  // its block does the work of this one
      if (column >= p.row_size) continue;
      // The first entry found is this block's own. Only now is it known that no other block writes.
      if (from == entry) sum = *to;
      sum += scale * p.grad[from * p.row_size + column];
    }
  }
  if (column < p.row_size) *to = sum;
}

}  // namespace

template <class T>
void launch_gather_rows(const GatherRows<T>& params, Stream stream) {
  if (params.count == 0 || params.row_size == 0) return;
  const unsigned tiles = column_tiles(params.row_size);
  TM_LAUNCH(gather_rows_kernel<T>, grid_size(params.count * tiles), kThreads, 0, stream, params,
            tiles);
}

template <class T>
void launch_scatter_add_rows(const ScatterAddRows<T>& params, Stream stream) {
  if (params.count == 0 || params.row_size == 0) return;
  const unsigned tiles = column_tiles(params.row_size);
  TM_LAUNCH(scatter_add_rows_kernel<T>, grid_size(params.count * tiles), kThreads, 0, stream,
            params, tiles);
}

template void launch_gather_rows(const GatherRows<float>&, Stream);
template void launch_gather_rows(const GatherRows<double>&, Stream);
template void launch_gather_rows(const GatherRows<int64_t>&, Stream);
template void launch_scatter_add_rows(const ScatterAddRows<float>&, Stream);
template void launch_scatter_add_rows(const ScatterAddRows<double>&, Stream);

}  // namespace trajmatch::cuda
