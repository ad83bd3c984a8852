// The deep blocks of a student on CUDA, whole planes in registers: 3x3 convolutions with as many
// output as input channels and padding 1, on planes of 16 x 16 or 8 x 8, with instance norm, ReLU
// and 2x2 average pooling in the same kernel. Float32; activations are channels last.
//
// Letters: K trajectories (students side by side, each with images and parameters of its own),
// B images of each, S side of the plane, C channels.
//
//   y  = sum over one or two terms of W_i * x_i        the rest as in core/norm_act_pool.h
//   dx = the same with dy for x and the weights turned: by 180 degrees, in and out exchanged
//   dW = sum over one or two pairs of x_i * dy_i
// Tangents have two terms: y' = W * x' + W' * x, dx' = W^T * dy' + W'^T * dy,
// dW' = x * dy' + x' * dy.
//
// Operations and bytes of an image at S = 16, C = 128, one term: 75.5 MFLOP; 0.13 MB read, 0.13
// written, and 0.59 MB of weights for every block that takes the image (from L2); in half precision
// 0.07 MB read and 0.29 MB of weights. The floor of 100 images on an H200: 126 us in float32
// (60 TFLOP/s), 19 us in TF32 (400 TFLOP/s), 13 us in half precision (600 TFLOP/s), 6 us of memory
// (4.3 TB/s). At S = 8 a quarter of each but of the weights, which four images share.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace trajmatch {

// How products are made; sums are float32 in all. TF32 has 10 bits behind the point. Three TF32
// products of high and low parts are as exact as float32; the forward pass alone offers them, whose
// result decides which ReLUs are active. Half precision has 10 bits too, at half the bytes and
// twice the rate, but takes operands that are scaled and rounded before (core/half_operand.h).
enum class ProductKind : int { kPlain = 0, kTf32 = 1, kTf32x3 = 2, kFp16 = 3 };

struct FusedConvolutionShape {
  int64_t trajectories, batch, size, channels;  // K, B, S, C

  TM_HD int64_t pixels() const { return size * size; }
  TM_HD int64_t image_size() const { return pixels() * channels; }
  TM_HD int64_t weight_size() const { return 9 * channels * channels; }
  // Images that a block takes at once: 256 pixels.
  TM_HD int64_t block_images() const { return 256 / pixels(); }
  int64_t image_blocks() const { return (batch + block_images() - 1) / block_images(); }
  bool fits() const {
    return (size == 16 || size == 8) && (channels == 32 || channels == 64 || channels == 128);
  }
  // Output channels of a block: as many as leave enough blocks for half the multiprocessors of an
  // H200, because every block reads all of its images.
  int64_t tile_channels() const {
    constexpr int64_t kEnoughBlocks = 66;
    int64_t tile = channels;
    while (tile > 32 && trajectories * image_blocks() * (channels / tile) < kEnoughBlocks) {
      tile /= 2;
    }
    return tile;
  }
};

// Weights [K, C, C, 3, 3] in the order that the kernels read, [K, 9 C^2]: for every 16 input
// channels and row of taps, [3 taps, 4 groups, C outputs, 4 inputs of the group]; for kFp16
// [3 taps, C outputs, 16 inputs] as halves, two in a float's place.
struct PackConvolution {
  FusedConvolutionShape shape;
  int64_t parameter_stride;           // from one trajectory's weight to the next one's
  bool turned;                        // for the gradient in x
  ProductKind kind;                   // weights for kTf32 and kFp16 are rounded
  const float* weight;                // [C, C, 3, 3], K of them
  float* packed;                      // [K, packed_size()]
  const float* magnitudes = nullptr;  // of the weights; for kFp16

  static int64_t packed_size(const FusedConvolutionShape& shape, ProductKind kind) {
    return kind == ProductKind::kFp16 ? shape.weight_size() / 2 : shape.weight_size();
  }
};

// For kFp16, operands are halves of [K, B, S, S, C] and packed weights, and come with the
// magnitudes that say how they are scaled.
struct FusedConvolution {
  struct Term {
    const float* x;       // [K, B, S, S, C]
    const float* weight;  // [K, 9 C^2], packed
    const float* x_magnitudes = nullptr;
    const float* weight_magnitudes = nullptr;
  };
  FusedConvolutionShape shape;
  ProductKind kind;
  int64_t tile_channels;  // 32, 64 or 128, at most C
  int terms;              // 1 or 2
  Term term[2];
  float* y;  // [K, B, S, S, C]
};

// The parameters of the norm: K of each, parameter_stride apart.
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
};

struct FusedBlockTangent {
  FusedConvolution convolution;  // of y'
  FusedNorm norm;
  const float* weight_tangent;  // [C], like the norm's weight
  const float* bias_tangent;    // [C]
  const float* y;               // [K, B, S, S, C]
  const float* mean;            // [K, B, C]
  const float* rstd;            // [K, B, C]
  float* out_tangent;           // [K, B, S/2, S/2, C]
  float* mean_tangent;          // [K, B, C]
  float* projection;            // [K, B, C]
};

// Gradient in the weights. Blocks of a split take the same images; a block of fewer than 128
// channels has warps to spare, which divide the pixels among them into parts.
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
  float* partial;            // [K, splits * parts, 3, 3, in, out] workspace
  float* grad_weight;        // [C, C, 3, 3], K of them
  int64_t parameter_stride;  // apart

  static int64_t block_inputs(int64_t channels) { return channels < 64 ? channels : 64; }
  static int64_t parts(int64_t channels) {
    return 8 * 32 * 32 / (block_inputs(channels) * channels);
  }
  // As many splits as give every multiprocessor of an H200 a block.
  static int64_t splits_of(const FusedConvolutionShape& shape) {
    constexpr int64_t kMultiprocessors = 132;
    const int64_t blocks = 3 * (shape.channels / block_inputs(shape.channels));
    const int64_t splits = kMultiprocessors / (blocks * shape.trajectories);
    return splits < 1 ? 1 : splits > shape.batch ? shape.batch : splits;
  }
};

namespace cuda {
// True if the current device has the shared memory that the kernels ask for, whatever the batch.
bool fused_convolution_fits_device(const FusedConvolutionShape& shape, ProductKind forward_kind,
                                   ProductKind kind);
void launch_pack_convolution(const PackConvolution& params, Stream stream);
void launch_fused_convolution(const FusedConvolution& params, Stream stream);
void launch_fused_block_forward(const FusedBlockForward& params, Stream stream);
void launch_fused_block_tangent(const FusedBlockTangent& params, Stream stream);
void launch_fused_convolution_weight(const FusedConvolutionWeight& params, Stream stream);
}  // namespace cuda

}  // namespace trajmatch
