// Norm, activation and 2x2 pooling of activations [B, H, W, C] (channels-last) as one operation, in
// the four passes that a Hessian-vector product needs.
//
// Letters: B images, C channels, H x W pixels, Ho x Wo pixels after pooling, G norm groups, A
// affine parameters ([C], or [H, W, C] if `elementwise`). On CUDA, K trajectories (students trained
// side by side) may share a pass: then all activations and statistics are [K, B, ..], and the
// parameters, their tangents and their gradients are K sets, parameter_stride apart.
//
// For a group of n values, m is the mean, s = 1/sqrt(variance + eps), and <.> a mean over the
// group:
//   xh  = s (x - m)            z  = w xh + b              a  = act(z)           out  = pool(a)
//   tangent (a prime):
//   xh' = s (x' - m') - q xh   z' = w' xh + w xh' + b'    a' = act'(z) z'       out' = pool(a')
//         with m' = <x'> and q = s <xh x'>, so that s' = -s q
//   backward, from grad_out:
//   da = unpool(grad_out)      dz = act'(z) da            dw = sum dz xh        db = sum dz
//   dxh = w dz                 dx = s (dxh - <dxh> - xh <dxh xh>)
//   tangent of the backward:
//   dz' = act'(z) da' + act''(z) z' da                    dw' = sum dz' xh + dz xh',  db' = sum dz'
//   dxh' = w' dz + w dz'
//   dx' = -q dx + s (dxh' - <dxh'> - xh' <dxh xh> - xh <dxh' xh + dxh xh'>)
// Max pooling takes the first largest value of a window in row-major order. Every pass uses the
// choice of the primal activations. An odd last row or column is dropped and receives no gradient.
#pragma once

#include <cstdint>

#include "core/activation.h"
#include "core/macros.h"
#include "core/share_sums.h"

namespace trajmatch {

enum class Pooling : int { kNone = 0, kAverage = 1, kMax = 2 };

#include "core/norm_formulas.h"

struct NormActPoolShape {
  int64_t batch, height, width, channels;
  int64_t groups;    // 0: no norm (mean, rstd and their tangents may then be null)
  bool elementwise;  // weight and bias are [H, W, C] (layer norm) instead of [C]
  Activation activation;
  Pooling pooling;
  double eps;
  // Batch norm: each channel has one mean over all images, and the statistics are [1, C]. CUDA
  // takes this as a norm over a single image that holds the rows of all images (as_one_image).
  bool over_batch = false;
  int64_t trajectories = 1;      // K
  int64_t parameter_stride = 0;  // elements between the parameters of one trajectory and the next

  NormActPoolShape as_one_image() const {
    NormActPoolShape result = *this;
    result.batch = 1;
    result.height *= batch;
    result.over_batch = false;
    return result;
  }
  // CUDA: number of blocks that share the pixels of an image. It is above 1 if images and channels
  // are too few to fill the GPU (two blocks per multiprocessor of an H200); each block then has at
  // least 2048 pixels of up to 32 channels.
  int64_t parts() const {
    constexpr int64_t kEnoughBlocks = 264, kFewestPixels = 2048, kLanes = 32, kFewestLanes = 8;
    if (over_batch) return as_one_image().parts();
    if (groups == 0 || images() == 0) return 1;
    const bool alone = groups == channels;
    const auto blocks = [&](int64_t lanes) {
      return images() * (alone ? (channels + lanes - 1) / lanes : groups);
    };
    if (blocks(kFewestLanes) >= kEnoughBlocks) return 1;
    const int64_t wanted = (kEnoughBlocks + blocks(kLanes) - 1) / blocks(kLanes);
    const int64_t wide = channels / groups / kLanes;  // groups of channels take several rounds
    const int64_t most = pixels() * (wide > 1 ? wide : 1) / kFewestPixels;
    return wanted < most ? wanted : most < 1 ? 1 : most;
  }
  // CUDA: size of the workspace `sums`: four sums per part and channel; 0 if no image is shared.
  int64_t sums_size() const {
    const int64_t count = parts();
    return count == 1 ? 0 : trajectories * (over_batch ? 1 : batch) * count * 4 * channels;
  }
  int64_t images() const { return trajectories * batch; }
  // CUDA: how the shares `partial` of all images, [K, B, 2, A], add up to the gradients of weight
  // and bias.
  template <class T>
  ShareSums<T> affine_sums(const T* partial, T* weight, T* bias) const {
    const int64_t size = affine_size(), rows = over_batch ? 1 : batch, all = rows * 2 * size;
    return {{{partial, weight, rows, 2 * size, size, all, parameter_stride},
             {partial + size, bias, rows, 2 * size, size, all, parameter_stride}},
            2,
            trajectories};
  }
  // Number of means.
  int64_t statistics() const { return trajectories * (over_batch ? 1 : batch) * groups; }
  TM_HD int64_t pixels() const { return height * width; }
  TM_HD int64_t out_height() const { return pooling == Pooling::kNone ? height : height / 2; }
  TM_HD int64_t out_width() const { return pooling == Pooling::kNone ? width : width / 2; }
  TM_HD int64_t affine_size() const { return elementwise ? pixels() * channels : channels; }
};

// In all passes weight and bias may be null (read as 1 and 0), and so may their tangents (read as
// 0).
template <class T>
struct NormActPoolForward {
  NormActPoolShape shape;
  const T* x;              // [B, H, W, C]
  const T* weight;         // [A]
  const T* bias;           // [A]
  T* out;                  // [B, Ho, Wo, C]
  T* mean;                 // [B, G]
  T* rstd;                 // [B, G]
  double* sums = nullptr;  // [sums_size()] workspace, CUDA only; null: one block per image and tile
  bool rounds = false;     // CUDA, float32: round out to TF32
};

template <class T>
struct NormActPoolBackward {
  NormActPoolShape shape;
  const T* x;              // [B, H, W, C]
  const T* weight;         // [A]
  const T* bias;           // [A]
  const T* mean;           // [B, G]
  const T* rstd;           // [B, G]
  const T* grad_out;       // [B, Ho, Wo, C]
  T* grad_x;               // [B, H, W, C]
  T* partial_grad_affine;  // [B, 2, A] the share of each image in the gradients of weight and bias,
                           // or null if they are not wanted
  T* grad_weight;          // [A], or null together with grad_bias: then the shares are not added up
  T* grad_bias;            // [A]
  double* sums = nullptr;  // [sums_size()] workspace, CUDA only; null: one block per image and tile
  bool rounds = false;     // CUDA, float32: round grad_x to TF32
};

template <class T>
struct NormActPoolTangent {
  NormActPoolShape shape;
  const T* x;               // [B, H, W, C]
  const T* weight;          // [A]
  const T* bias;            // [A]
  const T* mean;            // [B, G]
  const T* rstd;            // [B, G]
  const T* x_tangent;       // [B, H, W, C]
  const T* weight_tangent;  // [A]
  const T* bias_tangent;    // [A]
  T* out_tangent;           // [B, Ho, Wo, C]
  T* mean_tangent;          // [B, G] m'
  T* projection;            // [B, G] q
  double* sums = nullptr;  // [sums_size()] workspace, CUDA only; null: one block per image and tile
  bool rounds = false;     // CUDA, float32: round out_tangent to TF32
};

template <class T>
struct NormActPoolBackwardTangent {
  NormActPoolShape shape;
  const T* x;                 // [B, H, W, C]
  const T* weight;            // [A]
  const T* bias;              // [A]
  const T* mean;              // [B, G]
  const T* rstd;              // [B, G]
  const T* x_tangent;         // [B, H, W, C]
  const T* weight_tangent;    // [A]
  const T* bias_tangent;      // [A]
  const T* mean_tangent;      // [B, G]
  const T* projection;        // [B, G]
  const T* grad_out;          // [B, Ho, Wo, C]
  const T* grad_out_tangent;  // [B, Ho, Wo, C], or null (0)
  T* grad_x;               // [B, H, W, C] the primal gradient; null if not wanted, not over_batch
  T* grad_x_tangent;       // [B, H, W, C]
  T* partial_grad_affine;  // [B, 2, A], as in the backward pass
  T* grad_weight_tangent;  // [A], or null together with grad_bias_tangent
  T* grad_bias_tangent;    // [A]
  double* sums = nullptr;  // [sums_size()] workspace, CUDA only; null: one block per image and tile
  bool rounds = false;     // CUDA, float32: round grad_x and grad_x_tangent to TF32
};

namespace cpu {
// The two phases of a pass: kSums sums what each group needs, kUse then uses the sums. For a batch
// norm kSums must finish for all images before kUse starts.
enum class NormPhase { kBoth, kSums, kUse };

// For a batch norm: means over each image, `each` [B, count, C], and their means over the batch,
// `all` [count, C].
template <class T>
struct BatchMeans {
  T* each = nullptr;
  T* all = nullptr;
};

// Images [begin, end) of the batch. These functions leave the gradients of weight and bias in
// partial_grad_affine; sum_partial_affine adds them up over the whole batch in image order.
template <class T>
void norm_act_pool_forward(const NormActPoolForward<T>& params, int64_t begin, int64_t end,
                           NormPhase phase = NormPhase::kBoth, BatchMeans<T> means = {});
template <class T>
void norm_act_pool_backward(const NormActPoolBackward<T>& params, int64_t begin, int64_t end,
                            NormPhase phase = NormPhase::kBoth, BatchMeans<T> means = {});
template <class T>
void norm_act_pool_tangent(const NormActPoolTangent<T>& params, int64_t begin, int64_t end,
                           NormPhase phase = NormPhase::kBoth, BatchMeans<T> means = {});
template <class T>
void norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<T>& params, int64_t begin,
                                    int64_t end, NormPhase phase = NormPhase::kBoth,
                                    BatchMeans<T> means = {});
// Runs between the two phases: averages `count` means per channel over the batch. `variances`: the
// second row holds the variances around the means of the first.
template <class T>
void means_over_batch(const NormActPoolShape& shape, int64_t count, bool variances,
                      const BatchMeans<T>& means);
template <class T>
void sum_partial_affine(const NormActPoolShape& shape, const T* partial, T* weight, T* bias);
}  // namespace cpu

namespace cuda {
// Whole batch, including the sum over the images. Instantiated for float and double.
template <class T>
void launch_norm_act_pool_forward(const NormActPoolForward<T>& params, Stream stream);
template <class T>
void launch_norm_act_pool_backward(const NormActPoolBackward<T>& params, Stream stream);
template <class T>
void launch_norm_act_pool_tangent(const NormActPoolTangent<T>& params, Stream stream);
template <class T>
void launch_norm_act_pool_backward_tangent(const NormActPoolBackwardTangent<T>& params,
                                           Stream stream);
}  // namespace cuda

}  // namespace trajmatch
