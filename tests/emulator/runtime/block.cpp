#include "runtime/block.h"

#include <algorithm>
#include <cstring>

namespace emulator {

namespace {

// Equal names are mostly one string, since each comes from few places in the source.
bool same(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

}  // namespace

bool Site::operator==(const Site& other) const {
  return where.line() == other.where.line() && same(operation, other.operation) &&
         same(where.file_name(), other.where.file_name());
}

std::string Site::text() const {
  const std::string path = where.file_name();
  return std::string(operation) + " (" + path.substr(path.find_last_of('/') + 1) + ":" +
         std::to_string(where.line()) + ")";
}

Block::Block(const Launch& of) : launch(of), shared(of.dynamic_shared_bytes) {}

void Block::start(size_t number) {
  const dim3& grid = launch.grid;
  index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
           static_cast<unsigned>(number / grid.x / grid.y)};
  shared.reset();
}

unsigned Block::warp_end(unsigned warp) const {
  return std::min((warp + 1) * kWarpSize, num_threads());
}

std::string Block::name() const {
  return "block (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ") of " + launch.kernel;
}

}  // namespace emulator
