// Shared memory of one block.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>

namespace emulator {

// It is filled with kPoison, so that a read before any write shows, and AddressSanitizer sees an
// access beyond a variable. The block's threads may be OS threads: finding a variable must then not
// order them (no mutex, only relaxed atomics), or ThreadSanitizer would miss the kernel's races.
class SharedMemory {
 public:
  static constexpr unsigned char kPoison = 0xff;  // NaN in every floating type, -1 in every integer
  static constexpr size_t kMaxVariables = 32;     // static ones, of one block

  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Forgets all variables and contents, for the next block.
  void reset();

  // Launch-time memory, aligned to 16 bytes.
  void* dynamic() const { return dynamic_.get(); }
  // The static variable that `tag` stands for, set up by the first thread that asks for it. Throws
  // std::runtime_error when a block's static variables exceed what CUDA gives them.
  void* variable(const void* tag, size_t bytes);

 private:
  struct Variable {
    std::atomic<const void*> tag{nullptr};
    std::atomic<unsigned char*> memory{nullptr};
  };

  struct Deleter {
    void operator()(unsigned char* memory) const;
  };
  using Memory = std::unique_ptr<unsigned char, Deleter>;
  static Memory allocate(size_t bytes);

  unsigned char* set_up(size_t bytes);

  size_t dynamic_bytes_;
  Memory dynamic_;
  Memory static_;
  std::array<Variable, kMaxVariables> variables_;
  std::atomic<size_t> static_used_{0};  // without the red zones
  std::atomic<size_t> static_end_{0};   // with them
};

}  // namespace emulator
