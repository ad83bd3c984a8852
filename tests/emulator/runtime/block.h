// The threads of one block and what they share.
#pragma once

#include <cstddef>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "runtime/shared_memory.h"
#include "runtime/types.h"

namespace emulator {

constexpr unsigned kWarpSize = 32;

// Where in the source threads synchronise, and by what.
struct Site {
  const char* operation = "";
  std::source_location where;

  bool operator==(const Site& other) const;
  std::string text() const;  // "__syncthreads (kernel.cu:12)"
};

struct Launch {
  const char* kernel;  // its name in the source
  dim3 grid;
  dim3 block;
  size_t dynamic_shared_bytes;
  std::function<void()> body;  // what every thread runs

  unsigned threads() const { return block.x * block.y * block.z; }
  size_t blocks() const { return size_t{grid.x} * grid.y * grid.z; }
};

struct Block;

struct Thread {
  uint3 index{};      // threadIdx
  unsigned rank = 0;  // its number in the block
  Block* block = nullptr;

  unsigned lane() const { return rank % kWarpSize; }
  unsigned warp() const { return rank / kWarpSize; }
};

struct Block {
  explicit Block(const Launch& of);

  // Becomes the block of that number, x running fastest, with nothing in its shared memory.
  void start(size_t number);

  unsigned num_threads() const { return launch.threads(); }
  unsigned num_warps() const { return (num_threads() + kWarpSize - 1) / kWarpSize; }
  unsigned warp_begin(unsigned warp) const { return warp * kWarpSize; }
  unsigned warp_end(unsigned warp) const;  // less than 32 threads on where the block ends
  std::string name() const;                // "block (1,0,0) of some_kernel"

  const Launch& launch;
  uint3 index{};  // blockIdx
  SharedMemory shared;
};

}  // namespace emulator
