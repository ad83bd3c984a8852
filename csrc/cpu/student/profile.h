// Profile of a walk: seconds per layer and pass, measured on the first part only, while the profile
// is on. docs/performance.md shows an example.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trajmatch::cpu {

enum class Pass : int {
  kPack,           // copy parameters into the layout that the passes read
  kClear,          // zero sums and padding
  kRead,           // copy images into planes
  kTransform,      // planes to frequencies, forward
  kProduct,        // matrix products, forward
  kTransformBack,  // frequencies to planes, forward
  kNorm,           // norm, activation and pooling, forward
  kClassify,       // classifier and loss, forward and backward
  kNormBackward,
  kTransformGrad,      // planes to frequencies, backward
  kWeightProduct,      // weight gradient
  kInputProduct,       // input gradient
  kTransformGradBack,  // frequencies to planes, backward
  kWrite,              // write image gradients
  kWait,               // wait for the other threads
  kUnpack,             // copy sums into the flat order
  kCount
};
// Time without a layer, or of a layer beyond these, counts for layer 0.
constexpr int64_t kProfiledLayers = 8;

class Profile {
 public:
  void start() {
    for (auto& layer : seconds_) layer.fill(0);
    on_ = true;
  }
  // Switches the profile off. Returns "pass.layer" names with their seconds, without the zeros.
  std::vector<std::pair<std::string, double>> stop();
  bool on() const { return on_; }
  void add(Pass pass, int64_t layer, double seconds) {
    seconds_[layer < kProfiledLayers ? layer : 0][static_cast<int>(pass)] += seconds;
  }

 private:
  bool on_ = false;
  std::array<std::array<double, static_cast<int>(Pass::kCount)>, kProfiledLayers> seconds_{};
};

inline Profile& profile() {
  static Profile instance;
  return instance;
}

// A stopwatch: adds the time since the last lap to a pass.
class Laps {
 public:
  explicit Laps(bool wanted) : on_(wanted && profile().on()) { begin(); }
  void begin() {
    if (on_) last_ = Clock::now();
  }
  void lap(Pass pass, int64_t layer = 0) {
    if (!on_) return;
    const Clock::time_point now = Clock::now();
    profile().add(pass, layer, std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_;
  Clock::time_point last_;
};

}  // namespace trajmatch::cpu
