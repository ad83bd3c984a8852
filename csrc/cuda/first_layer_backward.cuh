// The products in the first layer's backward passes: from the block's planes of dy, which lie as
// cuda/first_layer_tile.cuh says, to the gradients of weights and images.
#pragma once

#include "cuda/first_layer_tile.cuh"

namespace trajmatch::cuda::first_layer {

// Shared memory of the backward kernels: the image, the weights as the image gradient reads them,
// and room for one product after the other, which a first launch does not need.
template <int channels, Launch launch>
struct BackwardMemory {
  static constexpr int kTaps = 9 * channels;
  static constexpr int kColumnPitch = kSide + 8;
  static constexpr int kShares = kWarps * 16 * kTapRows<channels> * kPlanes;
  static constexpr int kStage = kWarps * kRowTiles * kPlanes * 8;
  static constexpr int kColumns = kWarps * kTaps * kColumnPitch;
  static constexpr int kEdges = kWarps * 2 * channels * kSide;
  static constexpr int kImageWeights = kTapRows<channels> * 2 * kWarpSize * 8;
  static constexpr int kImageWork = kStage + kColumns + kEdges, kGrads = kPlanes * kThreads;
  static constexpr int kProducts = kShares > kImageWork ? kShares : kImageWork;
  static_assert(kProducts >= kShares + kGrads);
  static constexpr int kWork = launch == Launch::kFirst ? kGrads : kProducts;
  static constexpr size_t kBytes =
      (Taps<channels>::kSize + kImageWeights + kWork + kImage<channels>)*sizeof(float);
  // With the sums over planes, which lie in static memory, it fits GPUs with 99 KB for a block.
  static constexpr size_t kSums = PlaneSums<4, PartOf<false, launch>>::kSize * sizeof(float);
  static_assert(kBytes + kSums <= 99 * 1024);

  __device__ __forceinline__ explicit BackwardMemory(float* memory)
      : taps(memory),
        image_weights(memory + Taps<channels>::kSize),
        work(image_weights + kImageWeights),
        grads(work + kWork - kGrads + threadIdx.x),
        image(work + kWork) {}

  Taps<channels> taps;
  float* image_weights;  // as image_gradient() reads them
  float* work;           // as each product says
  // Quarters of the gradients of each thread's 16 windows, [16, threads]: registers are scarce.
  // They lie in `work`, behind what the weight gradient writes.
  float* grads;
  float* image;  // as load_image() has it
};

// Loads quarters of the gradients of the thread's windows of one channel.
template <class Part>
__device__ __forceinline__ void load_grads(const Part& part, const float* grad_out, float* grads) {
  TM_UNROLL
  for (int k = 0; k < kWindows; ++k) grads[k * kThreads] = 0.25f * grad_out[part.window(k)];
}

// The square's share of the gradients of the weights of the block's channels, [channels, I, 3, 3].
// They come from all 16 planes or, in kernels with tangents, from the planes of dy'. The rows of
// the product are taps, its columns channels, and 8 pixels are summed over, of which number t is
// pixel 2t and number t + 4 is pixel 2t + 1: dy is an operand as it lies. The partial sums of the
// warps are added in order. `all` is FirstLayerShares::weight.
template <int channels, class Part>
__device__ __forceinline__ void weight_gradient(
    const Part& part, const BackwardMemory<channels, Part::kLaunch>& memory,
    const float (&dy)[kTiles][4], float* all) {
  constexpr int kTaps = 9 * channels, kGroups = kTapRows<channels>;
  constexpr int kOwn = Part::kChannels, kColumns = kOwn / 8;
  float* const grad_weight = all + (part.global_square() * part.pitch + part.first_channel) * kTaps;
  const float* const pixels = memory.image + part.warp * kRows * kPitch + 2 * part.t;
  float sums[kGroups][kColumns][4];
  int offsets[kGroups][2];
  TM_UNROLL
  for (int m = 0; m < kGroups; ++m) {
    TM_UNROLL
    for (int i = 0; i < 4 * kColumns; ++i) sums[m][i / 4][i % 4] = 0.0f;
    TM_UNROLL
    for (int r = 0; r < 2; ++r) offsets[m][r] = memory.taps.offsets[16 * m + 8 * r + part.g];
  }
  TM_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    const int at = j / kRowTiles * kPitch + j % kRowTiles * 8;
    Split<2> own[kColumns];
    TM_UNROLL
    for (int i = 0; i < 2 * kColumns; ++i) {
      own[i / 2].set(i % 2, split(dy[j][(Part::kTangent ? 2 : 0) + i]));
    }
    TM_UNROLL
    for (int m = 0; m < kGroups; ++m) {
      Split<4> x;
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        x.high[i] = pixels[offsets[m][i % 2] + at + i / 2];
        x.low[i] = pixels[offsets[m][i % 2] + at + i / 2 + channels * kBordered];
      }
      TM_UNROLL
      for (int n = 0; n < kColumns; ++n) multiply(sums[m][n], x, own[n]);
    }
  }
  float* const shares = memory.work;  // [warps, 16 kGroups, channels]
  TM_UNROLL
  for (int m = 0; m < kGroups; ++m) {
    TM_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int tap = (part.warp * kGroups + m) * 16 + 8 * r + part.g;
      TM_UNROLL
      for (int n = 0; n < kColumns; ++n) {
        *reinterpret_cast<float2*>(shares + tap * kOwn + 8 * n + 2 * part.t) =
            float2{sums[m][n][2 * r], sums[m][n][2 * r + 1]};
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kOwn * kTaps; i += kThreads) {
    const float* const from = shares + i % kTaps * kOwn + i / kTaps;
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += from[w * 16 * kGroups * kOwn];
    grad_weight[i] = sum;
  }
}

// Loads the weights as image_gradient() reads them. In kernels with tangents dy is multiplied by W'
// and dy' by W, that is, with the weights of the plane 8 away.
template <int channels, class Part>
__device__ __forceinline__ void load_image_weights(const Part& part, const float* weight,
                                                   const float* weight_tangent, float* to) {
  // In the threads that do not load the taps.
  load_operands<2 * kTapRows<channels>>(kThreads / 2, to, [&](int group, int tap, int plane) {
    const int own = group % 2 * 8 + plane;
    return weight_of<channels>(part, Part::kTangent ? own ^ 8 : own, group / 2 * 16 + tap, weight,
                               weight_tangent);
  });
}

// The block's share of the image gradient, in `all`, which is FirstLayerShares::images. For a row
// of dy, a warp computes what each tap sends to each pixel, [9 I, 32], and its lanes add that up:
// lane x has column x + 1 of the bordered square. What goes to the first and the last column, which
// only planes of several squares need, is kept in `sides` and added up at the end. A warp sends
// something to two rows below its own, which the next warp adds. Overwrites the memory for the
// products and the image.
template <int channels, class Part>
__device__ __forceinline__ void image_gradient(
    const FirstLayerShape& shape, const Part& part,
    const BackwardMemory<channels, Part::kLaunch>& memory, const float (&dy)[kTiles][4],
    float* all) {
  using Memory = BackwardMemory<channels, Part::kLaunch>;
  constexpr bool kSeveral = Part::kLaunch != Launch::kOnly;
  constexpr int kReach = kRows + 2;  // rows that a warp sends something to
  constexpr int kSides = 2 * channels, kSent = 3 * kSides;
  constexpr int kTaps = Memory::kTaps, kColumnPitch = Memory::kColumnPitch;
  float* const stage = memory.work + part.warp * kRowTiles * kPlanes * 8;  // [tiles, planes, 8]
  float* const columns = memory.work + Memory::kStage + part.warp * kTaps * kColumnPitch;
  float* const edges = memory.work + Memory::kStage + Memory::kColumns;  // [warps, 2, I, 32]
  // Pixel x is at 4 + x. Before the first and behind the last one are zeros.
  for (int i = part.lane; i < kTaps * 2; i += kWarpSize) {
    columns[i / 2 * kColumnPitch + (i % 2 == 0 ? 3 : 4 + kSide)] = 0.0f;
  }
  float* const sides = memory.image;  // by row of dy: [32, 3 rows that it is sent to, 2, I]
  float dx[channels][kReach];
  TM_UNROLL
  for (int c = 0; c < channels; ++c) {
    TM_UNROLL
    for (int r = 0; r < kReach; ++r) dx[c][r] = 0.0f;
  }
  TM_UNROLL
  for (int row = 0; row < kRows; ++row) {
    TM_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      const float* const own = dy[row * kRowTiles + n];
      float* const to = stage + (n * kPlanes + part.g) * 8 + 2 * part.t;
      *reinterpret_cast<float2*>(to) = float2{own[0], own[1]};
      *reinterpret_cast<float2*>(to + 64) = float2{own[2], own[3]};
    }
    __syncwarp();
    TM_NO_UNROLL
    for (int n = 0; n < kRowTiles; ++n) {
      Split<2> planes[2];
      TM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float value = stage[(n * kPlanes + 4 * i + part.t) * 8 + part.g];
        planes[i / 2].set(i % 2, split(value));
      }
      TM_UNROLL
      for (int m = 0; m < kTapRows<channels>; ++m) {
        float sent[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        TM_UNROLL
        for (int half = 0; half < 2; ++half) {
          const Split<4> weights = operand(memory.image_weights, 2 * m + half, part.lane);
          multiply(sent, weights, planes[half]);
        }
        TM_UNROLL
        for (int r = 0; r < 2; ++r) {
          const int tap = 16 * m + part.g + 8 * r;
          if (tap < kTaps) {
            *reinterpret_cast<float2*>(columns + tap * kColumnPitch + 4 + n * 8 + 2 * part.t) =
                float2{sent[2 * r], sent[2 * r + 1]};
          }
        }
      }
    }
    __syncwarp();
    // Tap (ky, kx) of output pixel (r, q) is pixel (r + ky, q + kx) of the bordered image.
    TM_UNROLL
    for (int tap = 0; tap < kTaps; ++tap) {
      dx[tap / 9][row + tap % 9 / 3] += columns[tap * kColumnPitch + 5 + part.lane - tap % 3];
    }
    if (kSeveral && part.lane < kSent) {
      // Left taps of the first pixel, and right taps of the last one.
      const int ky = part.lane / kSides, side = part.lane / channels % 2, c = part.lane % channels;
      const int tap = c * 9 + ky * 3 + 2 * side;
      sides[(part.warp * kRows + row) * kSent + part.lane] =
          columns[tap * kColumnPitch + 4 + side * (kSide - 1)];
    }
    __syncwarp();
  }
  TM_UNROLL
  for (int c = 0; c < channels; ++c) {
    TM_UNROLL
    for (int r = 0; r < 2; ++r) {
      edges[((part.warp * 2 + r) * channels + c) * kSide + part.lane] = dx[c][kRows + r];
    }
  }
  __syncthreads();
  const int64_t images = shape.trajectories * shape.batch;
  float* const own = all + (part.tile * images + part.image) * shape.image_share() +
                     part.square * kBorderedSide * kBorderedSide * channels;
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  // The last two rows come from the last warp alone.
  TM_UNROLL
  for (int r = 0; r < kReach; ++r) {
    const int row = part.warp * kRows + r, column = part.lane + 1;
    if (r >= kRows && part.warp < kWarps - 1) continue;
    const int y = row - padding, x = column - padding;
    // The border of a plane's only square lies outside of the image.
    if (!kSeveral && (y < 0 || y >= size || x < 0 || x >= size)) continue;
    float* const to = own + (kSeveral ? row * kBorderedSide + column : y * size + x) * channels;
    TM_UNROLL
    for (int c = 0; c < channels; ++c) {
      float sum = dx[c][r];
      if (r < 2 && part.warp > 0) {
        sum += edges[(((part.warp - 1) * 2 + r) * channels + c) * kSide + part.lane];
      }
      to[c] = sum;
    }
  }
  if (kSeveral) {
    for (int i = static_cast<int>(threadIdx.x); i < kBorderedSide * kSides; i += kThreads) {
      const int row = i / kSides, side = i / channels % 2;
      float sum = 0.0f;
      for (int ky = 0; ky < 3; ++ky) {
        const int from = row - ky;
        if (from >= 0 && from < kSide) sum += sides[from * kSent + ky * kSides + i % kSides];
      }
      own[(row * kBorderedSide + side * (kBorderedSide - 1)) * channels + i % channels] = sum;
    }
  }
}

}  // namespace trajmatch::cuda::first_layer
