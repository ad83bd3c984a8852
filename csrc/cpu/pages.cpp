#include "core/pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace trajmatch::cpu {

void* Pages::reserve(int64_t bytes) {
  constexpr int64_t huge_page = int64_t{2} << 20;
  if (bytes <= bytes_) return data_;
  release();
  const int64_t size = (bytes + huge_page - 1) / huge_page * huge_page;
  data_ = std::aligned_alloc(huge_page, size);
  if (data_ == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data_, size, MADV_HUGEPAGE);  // only a hint: small pages work too
#endif
  bytes_ = size;
  return data_;
}

void Pages::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace trajmatch::cpu
