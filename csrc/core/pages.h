// Memory for the CPU engine.
#pragma once

#include <cstdint>
#include <memory_resource>

namespace trajmatch::cpu {

// Memory that one call after another uses, aligned to cache lines, in huge pages where the system
// offers them. Its content does not survive a call.
class Pages {
 public:
  Pages() = default;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { release(); }
  // At least this much, where it was or anew.
  void* reserve(int64_t bytes);
  void release();

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// What a thread keeps from one call of the engine to the next, so that a loop of calls asks the
// system for memory in its first step only.
struct EngineMemory {
  Pages pages;                                   // values
  std::pmr::unsynchronized_pool_resource lists;  // of layers and of parts: where values lie

  void release() {
    pages.release();
    lists.release();
  }
};

}  // namespace trajmatch::cpu
