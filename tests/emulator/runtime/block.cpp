#include "runtime/block.h"

#include <algorithm>
#include <cstring>

namespace emulator {

bool Site::operator==(const Site& other) const {
  return where.line() == other.where.line() && std::strcmp(operation, other.operation) == 0 &&
         std::strcmp(where.file_name(), other.where.file_name()) == 0;
}

std::string Site::text() const {
  const std::string path = where.file_name();
  return std::string(operation) + " (" + path.substr(path.find_last_of('/') + 1) + ":" +
         std::to_string(where.line()) + ")";
}

Block::Block(const Launch& of, dim3 at)
    : launch(of), index{at.x, at.y, at.z}, shared(of.dynamic_shared_bytes) {}

unsigned Block::warp_end(unsigned warp) const {
  return std::min((warp + 1) * kWarpSize, num_threads());
}

std::string Block::name() const {
  return "block (" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ") of " + launch.kernel;
}

}  // namespace emulator
