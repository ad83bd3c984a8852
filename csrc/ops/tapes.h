// Decides which steps of an unrolled loop keep their activations on a tape, and where.
#pragma once

#include <optional>

#include "ops/torch_api.h"

namespace trajmatch {

// The last steps of an unrolled loop whose tapes fit into `elements` elements together, and their
// offsets.
class Tapes {
 public:
  // `size_of(batch)` is the number of elements in the tape of one step; 0 means that there is no
  // tape.
  template <class SizeOf>
  Tapes(const Ints& batch_sizes, int64_t elements, const SizeOf& size_of)
      : begins_(batch_sizes.size()), sizes_(batch_sizes.size()) {
    first_ = static_cast<int64_t>(batch_sizes.size());
    int64_t batch = 0, size = 0;
    while (first_ > 0) {
      if (batch_sizes[first_ - 1] != batch) size = size_of(batch = batch_sizes[first_ - 1]);
      if (size == 0 || size > elements - total_) break;
      --first_;
      begins_[first_] = total_;
      sizes_[first_] = size;
      total_ += size;
    }
  }
  int64_t elements() const { return total_; }
  std::optional<VectorPart> of(const Tensor& tapes, int64_t step) const {
    if (step < first_) return std::nullopt;
    return VectorPart{tapes, begins_[step], sizes_[step]};
  }

 private:
  Ints begins_, sizes_;
  int64_t first_, total_ = 0;
};

}  // namespace trajmatch
