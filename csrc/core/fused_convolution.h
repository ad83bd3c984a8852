// The deeper blocks of a student on CUDA, with whole planes in registers: 3x3 convolutions with
// padding 1 and as many output as input channels, on planes of 16 x 16 or 8 x 8. The forward and
// tangent kernels include instance norm, ReLU and 2x2 average pooling. Float32; activations are
// channels-last.
//
// Letters: K trajectories (students trained side by side, each with its own images and parameters),
// B images per trajectory, S side of the plane, C channels.
//
//   y  = sum over one or two terms of W_i * x_i        the rest as in core/norm_act_pool.h
//   dx = as y, with dy in place of x, and the weights turned: rotated by 180 degrees, with input
//        and output channels exchanged
//   dW = sum over one or two pairs of x_i * dy_i
// Tangents have two terms:
//   y' = W * x' + W' * x       dx' = W^T * dy' + W'^T * dy      dW' = x * dy' + x' * dy
//
// Operations and bytes per image at S = 16, C = 128 with one term: 75.5 MFLOP, 0.13 MB read, 0.13
// MB written, and 0.59 MB of weights read from L2 by every thread block that works on the image. In
// half precision: 0.07 MB read and 0.29 MB of weights. The lower bound for 100 images on an H200 is
// 126 us in float32 (60 TFLOP/s), 19 us in TF32 (400 TFLOP/s), 13 us in half precision (600
// TFLOP/s), and 6 us for memory (4.3 TB/s). At S = 8 everything is a quarter, except the weights,
// which four images share.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/share_sums.h"

namespace trajmatch {

// How products are computed, all on tensor cores and accumulated in float32. TF32 has a 10-bit
// mantissa. kTf32x3 splits each operand into a high and a low part and adds three TF32 products,
// which is as accurate as float32. Only the forward pass offers it, because its result decides
// which ReLUs are active. Half precision also has a 10-bit mantissa, at half the bytes and twice
// the rate, but needs operands that were scaled and rounded beforehand (core/half_operand.h).
enum class ProductKind : int { kTf32, kTf32x3, kFp16 };

struct FusedConvolutionShape {
  int64_t trajectories, batch, size, channels;  // K, B, S, C

  TM_HD int64_t pixels() const { return size * size; }
  TM_HD int64_t image_size() const { return pixels() * channels; }
  TM_HD int64_t weight_size() const { return 9 * channels * channels; }
  // Images that a thread block works on at once: 256 pixels in total.
  TM_HD int64_t block_images() const { return 256 / pixels(); }
  int64_t image_blocks() const { return (batch + block_images() - 1) / block_images(); }
  bool fits() const {
    return (size == 16 || size == 8) && (channels == 32 || channels == 64 || channels == 128);
  }
  // The most output channels of a thread block. kTf32x3 runs out of registers at 128.
  int64_t widest_tile(ProductKind kind) const {
    return kind == ProductKind::kTf32x3 && channels > 64 ? 64 : channels;
  }
  // Output channels per thread block. Every block reads all of its images, so the tile is as wide
  // as possible while there are still enough blocks for half the multiprocessors of an H200.
  int64_t tile_channels(ProductKind kind) const {
    constexpr int64_t kEnoughBlocks = 66;
    int64_t tile = widest_tile(kind);
    while (tile > 32 && trajectories * image_blocks() * (channels / tile) < kEnoughBlocks) {
      tile /= 2;
    }
    return tile;
  }
};

// Reorders weights [K, C, C, 3, 3] into [K, 9 C^2], the order that the kernels read: for every
// 16 input channels and every row of taps, [3 taps, 4 groups, C outputs, 4 inputs of the group].
// For kFp16: 32 input channels and groups of 8, stored as halves, two per float.
struct PackConvolution {
  FusedConvolutionShape shape;
  int64_t parameter_stride;           // elements between the weights of two trajectories
  bool turned;                        // true for the gradient in x
  ProductKind kind;                   // weights for kTf32 and kFp16 are rounded
  const float* weight;                // [C, C, 3, 3], K of them
  float* packed;                      // [K, packed_size()]
  const float* magnitudes = nullptr;  // [K, kMagnitudes] of the weights; only for kFp16

  static int64_t packed_size(const FusedConvolutionShape& shape, ProductKind kind) {
    return kind == ProductKind::kFp16 ? shape.weight_size() / 2 : shape.weight_size();
  }
};

// For kTf32, x is rounded. For kFp16, x [K, B, S, S, C] and the packed weights are halves, and come
// with the magnitudes that define their scale.
struct FusedConvolution {
  struct Term {
    const float* x;       // [K, B, S, S, C]
    const float* weight;  // [K, 9 C^2], packed
    const float* x_magnitudes = nullptr;
    const float* weight_magnitudes = nullptr;
  };
  FusedConvolutionShape shape;
  ProductKind kind;
  int64_t tile_channels;  // 32, 64 or 128, at most shape.widest_tile(kind)
  int terms;              // 1 or 2
  Term term[2];
  float* y;  // [K, B, S, S, C]
};

// The parameters of the norm: K sets, parameter_stride apart.
struct FusedNorm {
  int64_t parameter_stride;
  float eps;
  const float* weight;  // [C]
  const float* bias;    // [C]
};

struct FusedBlockForward {
  FusedConvolution convolution;  // one term
  FusedNorm norm;
  float* out;   // [K, B, S/2, S/2, C]
  float* mean;  // [K, B, C]
  float* rstd;  // [K, B, C]
  bool rounds;  // round out to TF32
};

struct FusedBlockTangent {
  FusedConvolution convolution;  // computes y'
  FusedNorm norm;
  const float* weight_tangent;  // [C]; K of each tangent, spaced like the parameters
  const float* bias_tangent;    // [C]
  const float* y;               // [K, B, S, S, C]
  const float* mean;            // [K, B, C]
  const float* rstd;            // [K, B, C]
  float* out_tangent;           // [K, B, S/2, S/2, C]
  float* mean_tangent;          // [K, B, C]
  float* projection;            // [K, B, C]
  bool rounds;                  // round out_tangent to TF32
};

// Shares of the gradient in the weights. For kTf32, x and grad_y are rounded. All thread blocks of
// a split work on the same images. A block of fewer than 128 channels has spare warps, which divide
// the pixels into parts.
struct FusedConvolutionWeight {
  struct Pair {
    const float* x;       // [K, B, S, S, C]
    const float* grad_y;  // [K, B, S, S, C]
    const float* x_magnitudes = nullptr;
    const float* grad_y_magnitudes = nullptr;
  };
  FusedConvolutionShape shape;
  ProductKind kind;  // not kTf32x3
  int64_t splits;    // 1 to B
  int pairs;         // 1 or 2
  Pair pair[2];
  float* partial;  // [K, splits * parts, 3, 3, in, out] shares of the gradient

  // How the shares add up to the gradients [C, C, 3, 3] of K trajectories, `stride` apart.
  ShareSum<float> sum(float* grad_weight, int64_t stride) const {
    const int64_t size = shape.weight_size(), shares = splits * parts(shape.channels);
    return {partial, grad_weight, shares, size, size, shares * size, stride, shape.channels};
  }

  static int64_t block_inputs(int64_t channels) { return channels < 64 ? channels : 64; }
  static int64_t parts(int64_t channels) {
    return 8 * 32 * 32 / (block_inputs(channels) * channels);
  }
  // Chosen to give about one thread block to every multiprocessor of an H200.
  static int64_t splits_of(const FusedConvolutionShape& shape) {
    constexpr int64_t kMultiprocessors = 132;
    const int64_t blocks = 3 * (shape.channels / block_inputs(shape.channels));
    const int64_t splits = kMultiprocessors / (blocks * shape.trajectories);
    return splits < 1 ? 1 : splits > shape.batch ? shape.batch : splits;
  }
};

// The weights that one launch reorders. All have the same number of trajectories.
struct PackConvolutions {
  static constexpr int kMost = 16;
  PackConvolution each[kMost];
  int count;
};

namespace cuda {
// True if the current device has enough shared memory for the kernels. Holds for any batch.
bool fused_convolution_fits_device(const FusedConvolutionShape& shape, ProductKind forward_kind,
                                   ProductKind kind);
void launch_pack_convolutions(const PackConvolutions& params, Stream stream);
void launch_fused_convolution(const FusedConvolution& params, Stream stream);
void launch_fused_block_forward(const FusedBlockForward& params, Stream stream);
void launch_fused_block_tangent(const FusedBlockTangent& params, Stream stream);
void launch_fused_convolution_weight(const FusedConvolutionWeight& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
