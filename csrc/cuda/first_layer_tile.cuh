// The tile that the passes of the first layer (core/first_layer.h) share, and its convolution on
// tensor cores (cuda/tensor_core.cuh).
//
// A block holds a square of 32 x 32 pixels of 16 planes in registers: y of 16 channels or, in
// kernels with tangents, y of 8 channels, followed by y' of the same 8. The planes are the rows of
// a product, 8 neighbouring pixels its columns, and the 9 I taps are summed over. Each of the 8
// warps has 4 rows of pixels, that is, 16 tiles of 8 pixels. Of each tile, lane (g, t) = (lane / 4,
// lane % 4) holds pixels 2t and 2t + 1 of planes g and g + 8: y[tile][2 r + i] is pixel 2t + i of
// plane g + 8r. A lane therefore holds whole pooling windows.
//
// Tensor cores multiply TF32 numbers. A float32 number is split into the sum of two of them, and
// three products give the accuracy of float32, so that ReLU masks are those of float32.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/first_layer.h"
#include "core/norm_act_pool.h"
#include "cuda/tensor_core.cuh"

namespace trajmatch::cuda::first_layer {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kPlanes = FirstLayerShape::kPlanes;
constexpr int kSide = FirstLayerShape::kSquareSize;
constexpr int kRows = kSide / kWarps;      // rows of pixels of a warp
constexpr int kRowTiles = kSide / 8;       // tiles in a row
constexpr int kTiles = kRows * kRowTiles;  // tiles of a warp
constexpr int kWindows = kTiles / 2;       // pooling windows of a lane in each of its planes
// A channel of the square's part of the image, with a border of one pixel. Pitch and size let the
// lanes that read the operands of a product hit different banks.
constexpr int kPitch = 42;
constexpr int kBorderedSide = FirstLayerShape::kBorderedSize;
constexpr int kBordered = kBorderedSide * kPitch + 12;

static_assert(kPlanes == 16 && kRows == 4 && kRowTiles == 4);

// Groups of 8 taps, the depth of one tensor core product, and of 16 taps, its height.
template <int channels>
constexpr int kTapGroups = (9 * channels + 7) / 8;
template <int channels>
constexpr int kTapRows = (9 * channels + 15) / 16;

// The launches of a pass. Planes of one square need only one; for planes of several squares, the
// first one writes the sums over each square, and the second one reads them.
enum class Launch { kOnly, kFirst, kSecond };

// The square and the channels of the block, and the lane's place among them.
template <bool tangent_, Launch launch_>
struct PartOf {
  static constexpr bool kTangent = tangent_;
  static constexpr Launch kLaunch = launch_;
  static constexpr int kChannels = kTangent ? kPlanes / 2 : kPlanes;

  __device__ __forceinline__ explicit PartOf(const FirstLayerShape& shape)
      : across(kLaunch == Launch::kOnly ? 1 : static_cast<int>(shape.out_size()) / kSide),
        tile(static_cast<int>(blockIdx.y)),
        square(static_cast<int>(blockIdx.x) % squares()),
        image(static_cast<int>(blockIdx.z * static_cast<unsigned>(shape.batch) +
                               blockIdx.x / static_cast<unsigned>(squares()))),
        first_channel(tile * kChannels),
        warp(static_cast<int>(threadIdx.x) / kWarpSize),
        lane(static_cast<int>(threadIdx.x) % kWarpSize),
        g(lane / 4),
        t(lane % 4),
        pitch(static_cast<int>(shape.channels)) {}

  __device__ __forceinline__ int squares() const { return across * across; }
  // The square's first row and column of pixels in its plane.
  __device__ __forceinline__ int row() const { return square / across * kSide; }
  __device__ __forceinline__ int column() const { return square % across * kSide; }
  // Number of the square, counted over all images.
  __device__ __forceinline__ int64_t global_square() const {
    return static_cast<int64_t>(image) * squares() + square;
  }
  // Offset of the lane's first window of channel g in pooled activations [K, B, O/2, O/2, C].
  __device__ __forceinline__ int64_t pooled(const FirstLayerShape& shape) const {
    const int first = (row() / 2 + warp * kRows / 2) * pooled_side() + column() / 2 + t;
    return image * shape.pooled_size() + first * shape.channels + first_channel + g;
  }
  // Offset of the lane's window k from its first one.
  __device__ __forceinline__ int window(int k) const {
    return (k / kRowTiles * pooled_side() + k % kRowTiles * 4) * pitch;
  }
  // Offset of channel g in statistics [K, B, C].
  __device__ __forceinline__ int statistic() const { return image * pitch + first_channel + g; }
  // True in one lane for each g of each plane.
  __device__ __forceinline__ bool leads() const { return warp == 0 && t == 0 && square == 0; }

  int across;  // squares in a row of the plane
  int tile;
  int square;
  int image;          // counted over all trajectories
  int first_channel;  // first channel of the block
  int warp, lane, g, t;
  int pitch;  // channels

 private:
  __device__ __forceinline__ int pooled_side() const { return kSide / 2 * across; }
};

// The tile with pixel i (0 to 3, row by row) of the lane's window k; the pixel is 2t + i % 2 of it.
__device__ __forceinline__ constexpr int tile_of(int k, int i) {
  return k / kRowTiles * 2 * kRowTiles + k % kRowTiles + i / 2 * kRowTiles;
}

// Splits a number into the sum of two TF32 numbers.
__device__ __forceinline__ float2 split(float value) {
  const float high = round_to_tf32(value);
  return float2{high, round_to_tf32(value - high)};
}

// An operand of a product, split.
template <int count>
struct Split {
  __device__ __forceinline__ void set(int i, float2 value) {
    high[i] = value.x;
    low[i] = value.y;
  }
  float high[count], low[count];
};

// D += A B. The product of the two low parts is below the rounding of float32.
__device__ __forceinline__ void multiply(float (&d)[4], const Split<4>& a, const Split<2>& b) {
  multiply_tf32(d, a.low, b.high);
  multiply_tf32(d, a.high, b.low);
  multiply_tf32(d, a.high, b.high);
}

// Floats in shared memory of an image with its border: the high parts, then the low ones.
template <int channels>
constexpr int kImage = 2 * channels * kBordered;

// Loads what the square sees of the image, with its border, into shared memory. Output pixel (r, q)
// depends on rows r to r + 2 and columns q to q + 2.
template <int channels, class Part>
__device__ __forceinline__ void load_image(const FirstLayerShape& shape, const Part& part,
                                           const float* images, float* to) {
  constexpr int kRowsAtOnce = kThreads / kPitch, kTurns = (kBorderedSide - 1) / kRowsAtOnce + 1;
  const float* const image = images + part.image * shape.image_size();
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  const int thread = static_cast<int>(threadIdx.x), first = thread / kPitch;
  if (first >= kRowsAtOnce) return;
  const int column = thread % kPitch, x = part.column() + column - padding;
  const int y = part.row() + first - padding, from = (y * size + x) * channels;
  const bool has_column = column < kBorderedSide && x >= 0 && x < size;
  // All values are requested before the first one is used.
  float values[kTurns][channels];
  TM_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int row = turn * kRowsAtOnce;
    const bool inside = has_column && y + row >= 0 && y + row < size;
    TM_UNROLL
    for (int c = 0; c < channels; ++c) {
      values[turn][c] = inside ? image[from + row * size * channels + c] : 0.0f;
    }
  }
  float* const own = to + first * kPitch + column;
  TM_UNROLL
  for (int turn = 0; turn < kTurns; ++turn) {
    const int row = turn * kRowsAtOnce;
    if (first + row >= kBorderedSide) return;
    TM_UNROLL
    for (int c = 0; c < channels; ++c) {
      const float2 value = split(values[turn][c]);
      own[c * kBordered + row * kPitch] = value.x;
      own[(channels + c) * kBordered + row * kPitch] = value.y;
    }
  }
}

// Offset in the bordered image of what a tap multiplies for output pixel 0; 0 for taps beyond the
// last one, whose weights are 0.
template <int channels>
__device__ __forceinline__ int tap_offset(int tap) {
  return tap < 9 * channels ? tap / 9 * kBordered + tap % 9 / 3 * kPitch + tap % 3 : 0;
}

// A weight of a plane: of y or, in kernels with tangents for planes from 8 on, of y'.
template <int channels, class Part>
__device__ __forceinline__ float2 weight_of(const Part& part, int plane, int tap,
                                            const float* weight, const float* weight_tangent) {
  const int channel = part.first_channel + plane % Part::kChannels;
  const float* const from = plane < Part::kChannels ? weight : weight_tangent;
  return split(tap < 9 * channels ? from[channel * 9 * channels + tap] : 0.0f);
}

// Operands A of products in shared memory, [groups, lanes, 8]: the 16 x 8 numbers value(group, row,
// column), split, where the lanes read them. A thread takes a lane of a group; `first_thread` is
// the one that begins.
template <int groups, class Value>
__device__ __forceinline__ void load_operands(int first_thread, float* to, const Value& value) {
  static_assert(groups * kWarpSize <= kThreads);
  const int n = (static_cast<int>(threadIdx.x) + kThreads - first_thread) % kThreads;
  if (n >= groups * kWarpSize) return;
  const int lane = n % kWarpSize;
  float2 both[4];
  TM_UNROLL
  for (int i = 0; i < 4; ++i) {
    both[i] = value(n / kWarpSize, lane / 4 + i % 2 * 8, lane % 4 + i / 2 * 4);
  }
  float4* const slot = reinterpret_cast<float4*>(to + n * 8);
  slot[0] = float4{both[0].x, both[1].x, both[2].x, both[3].x};
  slot[1] = float4{both[0].y, both[1].y, both[2].y, both[3].y};
}

__device__ __forceinline__ void load_four(const float* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ __forceinline__ Split<4> operand(const float* operands, int group, int lane) {
  Split<4> result;
  load_four(operands + (group * kWarpSize + lane) * 8, result.high);
  load_four(operands + (group * kWarpSize + lane) * 8 + 4, result.low);
  return result;
}

// The taps in shared memory: the weights as convolve() reads them, and the offset of each tap.
template <int channels>
struct Taps {
  static constexpr int kWeights = kTapGroups<channels> * kWarpSize * 8;
  static constexpr int kSize = kWeights + kTapRows<channels> * 16;  // floats

  __device__ __forceinline__ explicit Taps(float* memory)
      : weights(memory), offsets(reinterpret_cast<int*>(memory + kWeights)) {}

  template <class Part>
  __device__ __forceinline__ void load(const Part& part, const float* weight,
                                       const float* weight_tangent) const {
    load_operands<kTapGroups<channels>>(0, weights, [&](int group, int plane, int tap) {
      return weight_of<channels>(part, plane, 8 * group + tap, weight, weight_tangent);
    });
    const int tap = static_cast<int>(threadIdx.x);
    if (tap < kTapRows<channels> * 16) offsets[tap] = tap_offset<channels>(tap);
  }

  float* weights;
  int* offsets;
};

// The convolution of the block's square. Products that follow each other belong to other tiles, so
// that none waits for the last one.
template <int channels, class Part>
__device__ __forceinline__ void convolve(const Part& part, const Taps<channels>& taps,
                                         const float* image, float (&y)[kTiles][4]) {
  TM_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    TM_UNROLL
    for (int i = 0; i < 4; ++i) y[j][i] = 0.0f;
  }
  const float* const pixels = image + part.warp * kRows * kPitch + part.g;
  TM_NO_UNROLL
  for (int s = 0; s < kTapGroups<channels>; ++s) {
    const Split<4> own = operand(taps.weights, s, part.lane);
    const int offsets[2] = {taps.offsets[8 * s + part.t], taps.offsets[8 * s + part.t + 4]};
    TM_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const int at = j / kRowTiles * kPitch + j % kRowTiles * 8;
      Split<2> x;
      TM_UNROLL
      for (int h = 0; h < 2; ++h) {
        x.high[h] = pixels[offsets[h] + at];
        x.low[h] = pixels[offsets[h] + at + channels * kBordered];
      }
      multiply(y[j], own, x);
    }
  }
}

// Sums over the pixels of planes: `count` sums for each g. Every lane adds its share of each,
// the block meets at __syncthreads(), and every lane of that g gets the sum. In a first launch, the
// sum is that of the square; in a second one, it is that of the plane, and shares are ignored.
template <int count, class Part>
class PlaneSums {
 public:
  static constexpr int kSize = count * 8 * kWarps;

  // `squares` is FirstLayerInputs::sums.
  __device__ __forceinline__ PlaneSums(float* memory, const Part& part, float* squares)
      : memory_(memory), squares_(squares), part_(part) {
    if constexpr (kAgain) {
      for_each_sum([&](int i) {
        float sum = 0.0f;
        for (int s = 0; s < part_.squares(); ++s) sum += *of_square(s, i);
        memory_[i] = sum;
      });
      if (threadIdx.x == 0) {
        memory_[kInverse] = kInverseSquare / static_cast<float>(part_.squares());
      }
    }
  }

  __device__ __forceinline__ void add(int n, float share) const {
    if constexpr (!kAgain) {
      share += __shfl_xor_sync(kFullWarp, share, 1);
      share += __shfl_xor_sync(kFullWarp, share, 2);
      if (part_.t == 0) memory_[(n * 8 + part_.g) * kWarps + part_.warp] = share;
    }
  }
  __device__ __forceinline__ float get(int n) const {
    const int i = n * 8 + part_.g;
    return kAgain ? memory_[i] : total(i);
  }
  // 1 / pixels of the sums. In a second launch it is read from shared memory, because a division
  // would take too many registers.
  __device__ __forceinline__ float inverse_pixels() const {
    return kAgain ? memory_[kInverse] : kInverseSquare;
  }
  // In a first launch, keeps the sums of the square for the second one and returns true.
  __device__ __forceinline__ bool end_first_launch() const {
    if constexpr (Part::kLaunch == Launch::kFirst) {
      for_each_sum([&](int i) { *of_square(part_.square, i) = total(i); });
      return true;
    } else {
      return false;
    }
  }
  // Refers squared deviations to the mean of the whole plane; does nothing in other launches than
  // the second. The first n sums of `memory_` are sums of values. The next n are sums of squared
  // deviations, which the first launch took from the mean of each square.
  __device__ __forceinline__ void recentre(int n) const {
    if constexpr (kAgain) {
      for_each_sum([&](int i) {
        if (i < n * 8) return;
        const float mean = memory_[i - n * 8] * inverse_pixels();
        float sum = 0.0f;
        for (int s = 0; s < part_.squares(); ++s) {
          const float difference = *of_square(s, i - n * 8) * kInverseSquare - mean;
          sum += difference * difference;
        }
        memory_[i] += sum / kInverseSquare;
      });
    }
  }

 private:
  static constexpr bool kAgain = Part::kLaunch == Launch::kSecond;
  static constexpr float kInverseSquare = 1.0f / (kSide * kSide);
  static constexpr int kInverse = count * 8;  // place of inverse_pixels()

  template <class Body>
  __device__ __forceinline__ static void for_each_sum(const Body& body) {
    if (threadIdx.x < count * 8) body(static_cast<int>(threadIdx.x));
  }
  // Returns the place in the workspace for sum i of the block's channels in a square.
  __device__ __forceinline__ float* of_square(int square, int i) const {
    const int64_t number = static_cast<int64_t>(part_.image) * part_.squares() + square;
    return squares_ + (number * gridDim.y + part_.tile) * (count * 8) + i;
  }
  __device__ __forceinline__ float total(int i) const {
    float shares[kWarps], sum = 0.0f;
    TM_UNROLL
    for (int w = 0; w < kWarps; w += 4) load_four(memory_ + i * kWarps + w, shares + w);
    TM_UNROLL
    for (int w = 0; w < kWarps; ++w) sum += shares[w];
    return sum;
  }

  float* memory_;  // [count, 8 values of g, warps], or [count, 8] and one more in a second launch
  float* squares_;
  const Part& part_;
};

// Calls body(channels, launch, grid) for each launch of a pass, with one block per square and tile;
// the number of input channels and the kind of launch are compile-time constants.
template <class Body>
void with_launches(const FirstLayerShape& shape, bool tangent, const Body& body) {
  if (shape.batch == 0 || shape.trajectories == 0) return;
  const dim3 grid(grid_size(shape.batch * shape.squares()), grid_size(shape.tiles(tangent)),
                  grid_size(shape.trajectories));
  const auto launches = [&](auto channels) {
    if (shape.squares() == 1) {
      body(channels, std::integral_constant<Launch, Launch::kOnly>(), grid);
    } else {
      body(channels, std::integral_constant<Launch, Launch::kFirst>(), grid);
      body(channels, std::integral_constant<Launch, Launch::kSecond>(), grid);
    }
  };
  if (shape.in_channels == 1) {
    launches(std::integral_constant<int, 1>());
  } else {
    launches(std::integral_constant<int, 3>());
  }
}

}  // namespace trajmatch::cuda::first_layer
