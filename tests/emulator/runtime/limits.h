// What a launch may ask for: of every limit the smallest among the architectures from sm_80 on.
// Options (runtime/options.h) may make it less.
#pragma once

#include <cstddef>

namespace emulator {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxBlockZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kStaticSharedBytes = 48 * 1024;  // also of dynamic memory, unless raised
constexpr size_t kMaxDynamicSharedKiB = 99;       // sm_86, sm_89, sm_120; sm_90 has 227 KiB

}  // namespace emulator
