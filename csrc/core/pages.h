// Memory for the CPU engine.
#pragma once

#include <cstdint>
#include <memory_resource>

namespace trajmatch::cpu {

// A block of memory that is reused from call to call. It is aligned to 2 MiB and uses huge pages if
// the system offers them. reserve() may discard the content.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { release(); }
  // Returns at least `bytes` bytes: the current block if it is large enough, otherwise a new one.
  void* reserve(int64_t bytes);
  void release();

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// The memory a thread keeps between calls of the engine, so that a loop of calls only asks the
// system for memory in its first step.
struct EngineMemory {
  Pages pages;                                   // the numbers themselves
  std::pmr::unsynchronized_pool_resource lists;  // bookkeeping per layer and part: pointers to the
                                                 // numbers

  void release() {
    pages.release();
    lists.release();
  }
};

}  // namespace trajmatch::cpu
