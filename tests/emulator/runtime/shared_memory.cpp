#include "runtime/shared_memory.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "runtime/limits.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size)
#define ASAN_UNPOISON_MEMORY_REGION(address, size)
#endif

namespace emulator {
namespace {

constexpr std::align_val_t kAlignment{16};
constexpr size_t kRedZoneBytes = 32;
constexpr size_t kStaticBytes =
    kStaticSharedBytes + SharedMemory::kMaxVariables * (kRedZoneBytes + 15);

constexpr size_t round_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

// Whichever thread comes first does this while the others go on: ThreadSanitizer must not take it
// for a write of the kernel.
__attribute__((no_sanitize("thread"))) void poison(unsigned char* memory, size_t bytes) {
  volatile unsigned char* const bytewise = memory;
  for (size_t i = 0; i < bytes; ++i) bytewise[i] = SharedMemory::kPoison;
}

}  // namespace

void SharedMemory::Deleter::operator()(unsigned char* memory) const {
  ::operator delete(memory, kAlignment);
}

SharedMemory::Memory SharedMemory::allocate(size_t bytes) {
  return Memory(static_cast<unsigned char*>(::operator new(bytes, kAlignment)));
}

SharedMemory::SharedMemory(size_t dynamic_bytes)
    : dynamic_bytes_(dynamic_bytes),
      dynamic_(allocate(dynamic_bytes)),
      static_(allocate(kStaticBytes)) {
  reset();
}

SharedMemory::~SharedMemory() { ASAN_UNPOISON_MEMORY_REGION(static_.get(), kStaticBytes); }

void SharedMemory::reset() {
  std::memset(dynamic_.get(), kPoison, dynamic_bytes_);
  for (Variable& variable : variables_) {
    if (variable.tag.load(std::memory_order_relaxed) == nullptr) break;
    variable.tag.store(nullptr, std::memory_order_relaxed);
    variable.memory.store(nullptr, std::memory_order_relaxed);
  }
  static_used_.store(0, std::memory_order_relaxed);
  static_end_.store(0, std::memory_order_relaxed);
  ASAN_POISON_MEMORY_REGION(static_.get(), kStaticBytes);
}

unsigned char* SharedMemory::set_up(size_t bytes) {
  const size_t used = static_used_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  if (used > kStaticSharedBytes) {
    throw std::runtime_error("the static shared variables of a block take " + std::to_string(used) +
                             " bytes, more than " + std::to_string(kStaticSharedBytes));
  }
  const size_t begin =
      static_end_.fetch_add(round_up(bytes) + kRedZoneBytes, std::memory_order_relaxed);
  unsigned char* memory = static_.get() + begin;
  ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
  poison(memory, bytes);
  return memory;
}

void* SharedMemory::variable(const void* tag, size_t bytes) {
  for (Variable& variable : variables_) {
    const void* seen = nullptr;
    if (variable.tag.compare_exchange_strong(seen, tag, std::memory_order_relaxed)) {
      unsigned char* memory = set_up(bytes);
      variable.memory.store(memory, std::memory_order_relaxed);
      return memory;
    }
    if (seen != tag) continue;
    unsigned char* memory = nullptr;
    while (memory == nullptr) memory = variable.memory.load(std::memory_order_relaxed);
    return memory;
  }
  throw std::runtime_error("a block has more than " + std::to_string(kMaxVariables) +
                           " static shared variables");
}

}  // namespace emulator
