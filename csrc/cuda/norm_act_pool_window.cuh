// Pooling windows on the device: the 1 or 4 pixels that make one output pixel, and the values of
// one channel at these pixels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/norm_act_pool.h"
#include "cuda/norm_act_pool_tiling.cuh"

namespace trajmatch::cuda {

template <Pooling pooling>
constexpr int kWindow = pooling == Pooling::kNone ? 1 : 4;

// The pixels of a window in row-major order, as offsets of their channel 0 within the image. At an
// odd edge some pixels are missing. Such a window has no output, but its pixels belong to the norm
// group.
template <Pooling pooling>
struct Window {
  __device__ __forceinline__ bool has(int k) const {
    return (k % 2 == 0 || right) && (k < 2 || below);
  }
  __device__ __forceinline__ bool complete() const { return right && below; }
  __device__ __forceinline__ int offset(int k) const {
    return first + (k % 2) * to_right + (k / 2) * to_below;
  }

  int first;               // offset of the first pixel
  int to_right, to_below;  // distance from a pixel to its neighbours
  int out;                 // offset of the output pixel
  bool right, below;       // true if the window has pixels there
};

// Iterates over the windows of one thread: number `start` and every `step`-th after it.
template <Pooling pooling>
class WindowWalk {
 public:
  __device__ __forceinline__ WindowWalk(const NormActPoolShape& shape, int start, int step)
      : height_(static_cast<int>(shape.height)),
        width_(static_cast<int>(shape.width)),
        channels_(static_cast<int>(shape.channels)) {
    if constexpr (pooling == Pooling::kNone) {
      column_ = start;  // number of the pixel; rows do not matter without pooling
      column_step_ = step;
    } else {
      const int columns = (width_ + 1) / 2;
      row_ = start / columns;
      column_ = start % columns;
      row_step_ = step / columns;
      column_step_ = step % columns;
    }
  }

  __device__ __forceinline__ bool valid() const {
    return pooling == Pooling::kNone ? column_ < height_ * width_ : 2 * row_ < height_;
  }

  __device__ __forceinline__ void next() {
    column_ += column_step_;
    if constexpr (pooling != Pooling::kNone) {
      row_ += row_step_;
      const int columns = (width_ + 1) / 2;
      if (column_ >= columns) {
        column_ -= columns;
        ++row_;
      }
    }
  }

  __device__ __forceinline__ Window<pooling> window() const {
    Window<pooling> window;
    window.to_right = channels_;
    window.to_below = width_ * channels_;
    if constexpr (pooling == Pooling::kNone) {
      window.first = window.out = column_ * channels_;
      window.right = window.below = true;
    } else {
      window.first = (2 * row_ * width_ + 2 * column_) * channels_;
      window.out = (row_ * (width_ / 2) + column_) * channels_;
      window.right = 2 * column_ + 1 < width_;
      window.below = 2 * row_ + 1 < height_;
    }
    return window;
  }

 private:
  int height_, width_, channels_;
  int row_ = 0, column_ = 0;  // position of the window
  int row_step_ = 0, column_step_ = 0;
};

// Calls body(slot, window) for the thread's windows. In the held kernel there are at most `slots`,
// and the loop is unrolled so that arrays indexed by the slot stay in registers. In the general
// kernel there may be any number of windows, and the slot is always 0.
template <Pooling pooling, bool held, int slots, class Body>
__device__ __forceinline__ void for_windows(const NormActPoolShape& shape, const Part& part,
                                            const Body& body) {
  if constexpr (held) {
    WindowWalk<pooling> walk(shape, part.first_window(), part.window_step());
    TM_UNROLL
    for (int slot = 0; slot < slots; ++slot) {
      if (walk.valid()) body(slot, walk.window());
      walk.next();
    }
  } else {
    for (WindowWalk<pooling> walk(shape, part.first_window(), part.window_step()); walk.valid();
         walk.next()) {
      body(0, walk.window());
    }
  }
}

// The values of one channel of one tensor at the windows of a thread.
template <class T, Pooling pooling, bool held, int slots>
struct Pixels {
  static constexpr int kSlots = held ? slots : 1;

  // Held kernel: reads all windows at once, so that as many loads as possible are in flight.
  __device__ __forceinline__ void hold(const NormActPoolShape& shape, const Part& part,
                                       const T* channel) {
    if constexpr (held) {
      for_windows<pooling, held, slots>(shape, part, [&](int slot, const Window<pooling>& window) {
        load(slot, window, channel);
      });
    }
  }

  // General kernel: reads one window.
  __device__ __forceinline__ void fetch(const Window<pooling>& window, const T* channel) {
    if constexpr (!held) load(0, window, channel);
  }

  T value[kSlots][kWindow<pooling>];

 private:
  __device__ __forceinline__ void load(int slot, const Window<pooling>& window, const T* channel) {
    for (int k = 0; k < kWindow<pooling>; ++k) {
      value[slot][k] = window.has(k) ? channel[window.offset(k)] : T(0);
    }
  }
};

// The same for a tensor of pooled pixels. Windows without an output get 0, and so does a null
// tensor.
template <class T, bool held, int slots>
struct PooledPixels {
  template <Pooling pooling>
  __device__ __forceinline__ void hold(const NormActPoolShape& shape, const Part& part,
                                       const T* channel) {
    if constexpr (held) {
      for_windows<pooling, held, slots>(shape, part, [&](int slot, const Window<pooling>& window) {
        load(slot, window, channel);
      });
    }
  }
  template <Pooling pooling>
  __device__ __forceinline__ void fetch(const Window<pooling>& window, const T* channel) {
    if constexpr (!held) load(0, window, channel);
  }

  T value[held ? slots : 1];

 private:
  template <Pooling pooling>
  __device__ __forceinline__ void load(int slot, const Window<pooling>& window, const T* channel) {
    value[slot] = channel != nullptr && window.complete() ? channel[window.out] : T(0);
  }
};

// The derivative of the pooled value in each pixel. Average: 1/4 each. Maximum: 1 for the first
// pixel that has it and 0 for the others. No pooling: 1.
template <Pooling pooling, class T>
__device__ __forceinline__ void pool_shares(const T (&value)[kWindow<pooling>],
                                            T (&share)[kWindow<pooling>]) {
  if constexpr (pooling == Pooling::kMax) {
    int best = 0;
    T largest = value[0];
    for (int k = 1; k < 4; ++k) {
      if (!(value[k] > largest)) continue;
      best = k;
      largest = value[k];
    }
    for (int k = 0; k < 4; ++k) share[k] = k == best ? T(1) : T(0);
  } else {
    for (int k = 0; k < kWindow<pooling>; ++k) share[k] = T(1) / T(kWindow<pooling>);
  }
}

// A weight, a bias or the tangent of one, at one channel. The tensor is [C], or [H, W, C] if the
// shape is elementwise (general kernel only). A null tensor stands for the constant `none`.
template <class T, bool held>
class Coefficient {
 public:
  __device__ __forceinline__ Coefficient(const NormActPoolShape& shape, const Part& part,
                                         const T* given, T none, int channel, bool active)
      : value_(none) {
    if (given == nullptr || !active) return;
    const T* const own = given + part.parameters + channel;
    if (!held && shape.elementwise) {
      pixels_ = own;
    } else {
      value_ = *own;
    }
  }
  // `offset`: the offset of the pixel within the image.
  __device__ __forceinline__ T at(int offset) const {
    if constexpr (!held) {
      if (pixels_ != nullptr) return pixels_[offset];
    }
    return value_;
  }

 private:
  T value_;
  const T* pixels_ = nullptr;
};

// The activation as a template argument (held kernels) and as a run-time value (general kernels).
template <Activation kind>
struct FixedActivation {
  template <class T>
  __device__ __forceinline__ ActivationJet<T> operator()(T z) const {
    return activation_jet<kind>(z);
  }
};

struct AnyActivation {
  Activation kind;
  template <class T>
  __device__ __forceinline__ ActivationJet<T> operator()(T z) const {
    switch (kind) {
      case Activation::kRelu:
        return activation_jet<Activation::kRelu>(z);
      case Activation::kLeakyRelu:
        return activation_jet<Activation::kLeakyRelu>(z);
      case Activation::kSigmoid:
        return activation_jet<Activation::kSigmoid>(z);
      default:
        return activation_jet<Activation::kNone>(z);
    }
  }
};

// The sum of a thread's own pixels. A thread of the held kernel has few pixels, one of the general
// kernel may have thousands.
template <class T, bool held>
using Partial = std::conditional_t<held, T, LongSum<T>>;

}  // namespace trajmatch::cuda
