// Reductions over long vectors: a fixed number of partial sums, then one sum over them. The result
// depends neither on the number of threads nor on the order in which blocks run.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

// Number of partial sums of a reduction, on every backend: enough to fill 132 multiprocessors about
// twice, few enough that the second pass costs nothing.
constexpr int64_t kReductionBlocks = 256;

// Partial sum `block` of a vector of `size` elements covers the elements [block_begin(size, block),
// block_begin(size, block + 1)).
TM_HD inline int64_t block_begin(int64_t size, int64_t block) {
  const int64_t length = (size + kReductionBlocks - 1) / kReductionBlocks;
  const int64_t begin = block * length;
  return begin < size ? begin : size;
}

}  // namespace trajmatch
