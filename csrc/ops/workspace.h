// Buffers that the steps of one operator call share.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "ops/torch_api.h"

namespace trajmatch {

inline Ints channels_last_strides(const Ints& sizes) {
  return {sizes[1] * sizes[2] * sizes[3], 1, sizes[3] * sizes[1], sizes[1]};
}

inline Ints contiguous_strides(const Ints& sizes) {
  Ints strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  return strides;
}

inline int64_t product_of(const Ints& sizes) {
  int64_t result = 1;
  for (int64_t size : sizes) result *= size;
  return result;
}

class Workspace {
 public:
  // A view of the buffer of this name and index with these sizes. It holds what was last written
  // under that name and index, or uninitialised data if it is new or had to grow.
  Tensor contiguous(const char* name, size_t index, const Ints& sizes, const Tensor& like) {
    return view(buffer(name, index, product_of(sizes), like), 0, sizes, contiguous_strides(sizes));
  }
  Tensor channels_last(const char* name, size_t index, const Ints& sizes, const Tensor& like) {
    return view(buffer(name, index, product_of(sizes), like), 0, sizes,
                channels_last_strides(sizes));
  }

 private:
  Tensor& buffer(const char* name, size_t index, int64_t size, const Tensor& like) {
    Tensor& buffer = buffers_[{name, index}];
    if (!buffer.defined() || buffer.numel() < size || buffer.scalar_type() != like.scalar_type()) {
      buffer = empty({size}, like);
    }
    return buffer;
  }
  std::map<std::pair<std::string, size_t>, Tensor> buffers_;
};

}  // namespace trajmatch
