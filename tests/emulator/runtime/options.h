// How the emulator schedules warps and blocks, and which card it is, chosen by the environment.
#pragma once

#include <cstddef>

#include "runtime/limits.h"

namespace emulator {

// A kernel must give the same result under every schedule: what a missing barrier breaks under one
// of them often survives under another.
enum class Schedule {
  kRoundRobin = 0,    // every warp advances to its next synchronisation in turn
  kLowestFirst = 1,   // the lowest warp runs as far as it can before the next one starts
  kHighestFirst = 2,  // the highest warp first, its lanes and the grid's blocks in descending order
  kRandom = 3,        // warps, lanes and blocks in random order
};

struct Options {
  Schedule schedule = Schedule::kRoundRobin;
  bool given = false;                        // whether the environment says which
  bool pairs = false;                        // whether a case runs under two, not under all
  unsigned seed = 0;                         // of kRandom
  size_t shared_kib = kMaxDynamicSharedKiB;  // that a block may have; sm_75 has 64
};

// Read once from TRAJMATCH_EMULATOR_ORDER (0 to 3), _SEED and _SHARED_KIB; tests may change it
// between launches. Throws std::invalid_argument where the environment holds anything else.
Options& options();

// True if asynchronous copies and launches on side streams are made at once, false if as late as
// allowed.
inline bool copies_immediately() {
  const Schedule schedule = options().schedule;
  return schedule == Schedule::kRoundRobin || schedule == Schedule::kRandom;
}

}  // namespace emulator
