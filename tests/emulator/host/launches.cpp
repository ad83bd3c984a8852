// The number of launches so far, for tests that count them (by ctypes).

#include "runtime/launch.h"

extern "C" __attribute__((visibility("default"))) int emulator_launches() {
  return static_cast<int>(emulator::launch_log().size());
}
