// Where the time of a walk goes: seconds of the first part's thread, by layer and pass, while the
// profile is on. docs/performance.md shows one.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace trajmatch::cpu {

enum class Pass : int {
  kPack,           // parameters into the order of the passes
  kClear,          // sums and padding
  kRead,           // images into planes
  kTransform,      // planes into frequencies, forward
  kProduct,        // forward
  kTransformBack,  // frequencies into planes, forward
  kNorm,           // with activation and pooling, forward
  kClassify,       // classifier and loss, both ways
  kNormBackward,
  kTransformGrad,      // planes into frequencies, backward
  kWeightProduct,      // gradient in the weight
  kInputProduct,       // gradient in the input
  kTransformGradBack,  // frequencies into planes, backward
  kWrite,              // gradients of images
  kWait,               // for the other threads
  kUnpack,             // sums into the flat order
  kCount
};
constexpr int64_t kProfiledLayers = 8;  // what has no layer, or a higher one, counts for the first

class Profile {
 public:
  void start() {
    for (auto& layer : seconds_) layer.fill(0);
    on_ = true;
  }
  // "pass" or "pass.layer" with its seconds.
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

// Charges the time since the last lap to a pass.
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
