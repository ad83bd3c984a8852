// The products in the first layer's backward passes: from the block's planes of dy to the gradients
// of weights and images.
#pragma once

#include "cuda/first_layer_tile.cuh"

namespace trajmatch::cuda::first_layer {

// Shared memory of the backward kernels: the planes of dy with borders, the image with its border,
// and the weights.
template <int channels>
struct BackwardMemory {
  static constexpr int kPlanesEnd = kPlanes * kBordered;
  static constexpr int kImageEnd = kPlanesEnd + channels * kBordered;
  static constexpr int kWeightsEnd = kImageEnd + 9 * channels * kPlanes;
  static constexpr size_t kBytes = kWeightsEnd * sizeof(float);

  __device__ __forceinline__ explicit BackwardMemory(float* memory)
      : planes(memory), image(memory + kPlanesEnd), weights(memory + kImageEnd) {}

  float* planes;   // [16, 34, 36]
  float* image;    // [I, 34, 36]
  float* weights;  // [9 I, 16]
};

// Zeroes the borders of the planes, including the padding columns at the end of each row.
__device__ __forceinline__ void clear_borders(float* planes) {
  for (int i = static_cast<int>(threadIdx.x); i < kPlanes * kBordered; i += kThreads) {
    const int row = i / kPitch % kBorderedSide, column = i % kPitch;
    if (row == 0 || row > kSide || column == 0 || column > kSide) planes[i] = 0.0f;
  }
}

// Stores a thread's pixels of one plane in shared memory.
__device__ __forceinline__ void store_plane(float* plane, int row, int column,
                                            const float (&values)[8]) {
  float* const to = plane + (row + 1) * kPitch + column + 1;
  TM_UNROLL
  for (int i = 0; i < 8; ++i) to[i / 4 * kPitch + i % 4] = values[i];
}

// The gradients of the weights of the block's channels, [channels, I, 3, 3]. They come from all 16
// planes or, in kernels with tangents, from the planes of dy'.
//
// A lane computes one tap for all channels, and a warp covers four rows of pixels. Rows are read
// with their borders, which are zero, because only then are groups of four columns aligned to 16
// bytes. The partial sums of the warps are added in order. Overwrites the planes.
template <int channels, bool tangent>
__device__ __forceinline__ void weight_gradient(const Part<tangent>& part, float* planes,
                                                const float* image, float* grad_weight) {
  constexpr int kTaps = 9 * channels;
  constexpr int kOwn = kGroupChannels<tangent>;
  constexpr int kWarps = kThreads / kWarpSize;
  constexpr int kRows = kSide / kWarps;
  constexpr int kQuads = kPitch / 4;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int tap = lane < kTaps ? lane : 0;
  // Column 0 of dy is border. Its image partner is the pixel before the row in memory, which is
  // padding. Both are 0.
  const float* const pixels = image + tap / 9 * kBordered + tap % 9 / 3 * kPitch + tap % 3 - 1;
  float sums[2 * kOwn];
  TM_UNROLL
  for (int c = 0; c < 2 * kOwn; ++c) sums[c] = 0.0f;
  TM_NO_UNROLL
  for (int quad = 0; quad < kRows * kQuads; ++quad) {
    const int row = warp * kRows + quad / kQuads, column = quad % kQuads * 4;
    float x[4];
    TM_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = pixels[row * kPitch + column + i];
    TM_UNROLL
    for (int c = 0; c < 2 * kOwn; ++c) {
      const int plane = c / kOwn * kGroupPlanes + (tangent ? kOwn : 0) + c % kOwn;
      float dy[4];
      load_four(planes + plane * kBordered + (row + 1) * kPitch + column, dy);
      TM_UNROLL
      for (int i = 0; i < 4; ++i) sums[c] += x[i] * dy[i];
    }
  }
  __syncthreads();
  // The planes are no longer needed and make room for the partial sums of the warps.
  float* const shares = planes;  // [warps, channels, taps]
  if (lane < kTaps) {
    TM_UNROLL
    for (int c = 0; c < 2 * kOwn; ++c) shares[(warp * 2 * kOwn + c) * kTaps + tap] = sums[c];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * kOwn * kTaps; i += kThreads) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shares[w * 2 * kOwn * kTaps + i];
    grad_weight[part.first_channel * kTaps + i] = sum;
  }
}

// The block's partial sum of the image gradient, [S, S, I]. A thread computes four neighbouring
// pixels. In kernels with tangents, dy is multiplied by W' and dy' by W. A plane therefore takes
// the weights of the other plane of its channel, which is 4 away.
template <int channels, bool tangent>
__device__ __forceinline__ void image_gradient(const FirstLayerShape& shape, const float* planes,
                                               const float* weights, float* grad_image) {
  // The thread's pixels begin at (row + 1, column + 1) of the bordered image. Output pixel r sees
  // image rows r to r + 2, and its dy is in row r + 1 of the bordered plane. So tap ky meets row
  // row + 2 - ky of the plane.
  const int row = static_cast<int>(threadIdx.x) / 8, column = static_cast<int>(threadIdx.x) % 8 * 4;
  float sums[channels][4];
  TM_UNROLL
  for (int c = 0; c < channels; ++c) {
    TM_UNROLL
    for (int i = 0; i < 4; ++i) sums[c][i] = 0.0f;
  }
  TM_NO_UNROLL
  for (int plane = 0; plane < kPlanes; plane += 4) {
    TM_NO_UNROLL
    for (int ky = 0; ky < 3; ++ky) {
      float dy[4][6];
      TM_UNROLL
      for (int n = 0; n < 4; ++n) {
        load_row(planes + (plane + n) * kBordered + (row + 2 - ky) * kPitch + column, dy[n]);
      }
      TM_UNROLL
      for (int c = 0; c < channels; ++c) {
        TM_UNROLL
        for (int kx = 0; kx < 3; ++kx) {
          float w[4];
          load_four(weights + (c * 9 + ky * 3 + kx) * kPlanes + (tangent ? plane ^ 4 : plane), w);
          TM_UNROLL
          for (int i = 0; i < 4; ++i) {
            TM_UNROLL
            for (int n = 0; n < 4; ++n) sums[c][i] += w[n] * dy[n][i + 2 - kx];
          }
        }
      }
    }
  }
  const int size = static_cast<int>(shape.in_size), padding = static_cast<int>(shape.padding);
  const int y = row + 1 - padding;
  if (y < 0 || y >= size) return;
  TM_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int x = column + 1 + i - padding;
    if (x < 0 || x >= size) continue;
    TM_UNROLL
    for (int c = 0; c < channels; ++c) grad_image[(y * size + x) * channels + c] = sums[c][i];
  }
}

// The second launch of both passes: adds up the partial sums of all blocks.
void launch_first_layer_sums(const FirstLayerShape& shape, bool tangent,
                             const FirstLayerGradients& out, Stream stream);

}  // namespace trajmatch::cuda::first_layer
