// The products in the first layer's backward passes: from the block's planes of dy, which lie as
// cuda/first_layer_tile.cuh says, to the gradients of weights and images.
#pragma once

#include "cuda/first_layer_tile.cuh"

namespace trajmatch::cuda::first_layer {

// Shared memory of the backward kernels: the image, the weights as the image gradient reads them,
// and room for one product after the other.
template <int channels>
struct BackwardMemory {
  static constexpr int kTaps = 9 * channels;
  static constexpr int kColumnPitch = kSide + 8;
  static constexpr int kShares = kWarps * 16 * kTapRows<channels> * kPlanes;
  static constexpr int kStage = kWarps * kRowTiles * kPlanes * 8;
  static constexpr int kColumns = kWarps * kTaps * kColumnPitch;
  static constexpr int kEdges = kWarps * 2 * channels * kSide;
  static constexpr int kImageWeights = kTapRows<channels> * 2 * kWarpSize * 8;
  static constexpr int kImageWork = kStage + kColumns + kEdges;
  static constexpr int kWork = kShares > kImageWork ? kShares : kImageWork;
  static_assert(kWork >= kShares + kPlanes * kThreads);
  static constexpr size_t kBytes =
      (Taps<channels>::kSize + kImageWeights + kWork + kImage<channels>)*sizeof(float);

  __device__ __forceinline__ explicit BackwardMemory(float* memory)
      : taps(memory),
        image_weights(memory + Taps<channels>::kSize),
        work(image_weights + kImageWeights),
        grads(work + kWork - kPlanes * kThreads + threadIdx.x),
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
__device__ __forceinline__ void load_grads(const float* grad_out, int channels, float* grads) {
  TM_UNROLL
  for (int k = 0; k < kWindows; ++k) grads[k * kThreads] = 0.25f * grad_out[window(channels, k)];
}

// The gradients of the weights of the block's channels, [channels, I, 3, 3]. They come from all 16
// planes or, in kernels with tangents, from the planes of dy'. The rows of the product are taps,
// its columns channels, and 8 pixels are summed over, of which number t is pixel 2t and number t +
// 4 is pixel 2t + 1: dy is an operand as it lies. The partial sums of the warps are added in order.
template <int channels, bool tangent>
__device__ __forceinline__ void weight_gradient(const Part<tangent>& part,
                                                const BackwardMemory<channels>& memory,
                                                const float (&dy)[kTiles][4], float* grad_weight) {
  constexpr int kTaps = 9 * channels, kGroups = kTapRows<channels>;
  constexpr int kOwn = Part<tangent>::kChannels, kColumns = kOwn / 8;
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
      own[i / 2].set(i % 2, split(dy[j][(tangent ? 2 : 0) + i]));
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
    grad_weight[part.first_channel * kTaps + i] = sum;
  }
}

// Loads the weights as image_gradient() reads them. In kernels with tangents dy is multiplied by W'
// and dy' by W, that is, with the weights of the plane 8 away.
template <int channels, bool tangent>
__device__ __forceinline__ void load_image_weights(const Part<tangent>& part, const float* weight,
                                                   const float* weight_tangent, float* to) {
  load_operands(2 * kTapRows<channels>, to, [&](int group, int tap, int plane) {
    const int own = group % 2 * 8 + plane;
    return weight_of<channels>(part, tangent ? own ^ 8 : own, group / 2 * 16 + tap, weight,
                               weight_tangent);
  });
}

// The block's partial sum of the image gradient, [S, S, I]. For a row of dy, a warp computes what
// each tap sends to each pixel, [9 I, 32], and its lanes add that up: lane x has column x + 1 of
// the bordered image. A warp sends something to two rows below its own, which the next warp adds.
// Overwrites the memory for the products.
template <int channels, bool tangent>
__device__ __forceinline__ void image_gradient(const FirstLayerShape& shape,
                                               const Part<tangent>& part,
                                               const BackwardMemory<channels>& memory,
                                               const float (&dy)[kTiles][4], float* grad_image) {
  using Memory = BackwardMemory<channels>;
  constexpr int kTaps = Memory::kTaps, kColumnPitch = Memory::kColumnPitch;
  float* const stage = memory.work + part.warp * kRowTiles * kPlanes * 8;  // [tiles, planes, 8]
  float* const columns = memory.work + Memory::kStage + part.warp * kTaps * kColumnPitch;
  float* const edges = memory.work + Memory::kStage + Memory::kColumns;  // [warps, 2, I, 32]
  // Pixel x is at 4 + x. Before the first and behind the last one are zeros.
  for (int i = part.lane; i < kTaps * 2; i += kWarpSize) {
    columns[i / 2 * kColumnPitch + (i % 2 == 0 ? 3 : 4 + kSide)] = 0.0f;
  }
  float dx[channels][kRows + 2];
  TM_UNROLL
  for (int c = 0; c < channels; ++c) {
    TM_UNROLL
    for (int r = 0; r < kRows + 2; ++r) dx[c][r] = 0.0f;
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
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  const int x = part.lane + 1 - padding;
  // Row 32 of the bordered image comes from the last warp alone; rows 0 and 33 are border.
  TM_UNROLL
  for (int r = 0; r < kRows + 1; ++r) {
    const int y = part.warp * kRows + r - padding;
    const bool owned = r < kRows || part.warp == kWarps - 1;
    if (!owned || y < 0 || y >= size || x < 0 || x >= size) continue;
    TM_UNROLL
    for (int c = 0; c < channels; ++c) {
      float sum = dx[c][r];
      if (r < 2 && part.warp > 0) {
        sum += edges[(((part.warp - 1) * 2 + r) * channels + c) * kSide + part.lane];
      }
      grad_image[(y * size + x) * channels + c] = sum;
    }
  }
}

}  // namespace trajmatch::cuda::first_layer
