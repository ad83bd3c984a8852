// Losses of a student's outputs, their gradients, and the tangents of the gradients (formulas:
// core/soft_cross_entropy.h).
//
// One warp per row (cuda/soft_cross_entropy_row.cuh). The loss and its tangent are summed over the
// rows by cuda/sum_shares.cu. All arithmetic on a row is float64, as on the CPU: in float32, the
// error of the loss's tangent is up to three times as large. A batch has a few thousand logits: on
// GPUs with fast float64, this arithmetic takes less time than a launch. On GeForce GPUs, float64
// is slow. Deterministic. No argument may alias another.
//
// Bytes per logit in float32, with target logits and every output wanted: 8 read forward; 8 read
// and 8 written backward; 16 read and 8 written for the tangent. At the 4.3 TB/s of an H200 even
// 1000 rows of 100 classes take only 0.2 to 0.6 microseconds.

#include "core/share_sums.h"
#include "cuda/soft_cross_entropy_row.cuh"

namespace trajmatch::cuda {
namespace {

using namespace row_loss;

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = kThreads / kWarpSize;
// Allows 128 registers per thread. Without this bound the compiler spills a few registers to fit
// more blocks.
constexpr int kMinBlocks = 4;

// The row of this warp. It is too large for warps without a row.
__device__ __forceinline__ int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarpSize;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    cross_entropy_forward_kernel(SoftCrossEntropyForward<T> params) {
  const int64_t at = row_of_warp();
  if (at >= params.in.rows()) return;
  if (params.in.squares()) {
    const double loss = squares_sum(params.in, at, params.in.logits, params.in.target) / 2;
    if (first_lane()) params.row_loss[at] = static_cast<T>(loss);
    return;
  }
  const Row<T> row(params.in, at);
  const double mean_log = row.weighted_log();
  if (first_lane()) params.row_loss[at] = static_cast<T>(-row.factor * mean_log);
}

// Computes the gradients (SoftCrossEntropyBackward) or their tangents
// (SoftCrossEntropyBackwardTangent).
template <class Params>
__global__ void __launch_bounds__(kThreads, kMinBlocks)
    cross_entropy_gradient_kernel(Params params) {
  const int64_t at = row_of_warp();
  if (at < params.in.rows()) differentiate(params, at);
}

template <class T>
unsigned row_blocks(const SoftCrossEntropyInputs<T>& in) {
  return grid_size((in.rows() + kRowsPerBlock - 1) / kRowsPerBlock);
}

// Adds the rows of each trajectory.
template <class T>
void launch_sum_rows(const SoftCrossEntropyInputs<T>& in, const T* rows, T* sums, Stream stream) {
  if (sums == nullptr) return;
  launch_sum_shares<T>({{{rows, sums, in.batch, 1, 1, in.batch, 1}}, 1, in.trajectories}, stream);
}

}  // namespace

template <class T>
void launch_soft_cross_entropy_forward(const SoftCrossEntropyForward<T>& params, Stream stream) {
  if (params.in.rows() == 0) return;
  TM_LAUNCH(cross_entropy_forward_kernel<T>, row_blocks(params.in), kThreads, 0, stream, params);
  launch_sum_rows(params.in, params.row_loss, params.loss, stream);
}

template <class T>
void launch_soft_cross_entropy_backward(const SoftCrossEntropyBackward<T>& params, Stream stream) {
  if (params.in.rows() == 0) return;
  TM_LAUNCH(cross_entropy_gradient_kernel<SoftCrossEntropyBackward<T>>, row_blocks(params.in),
            kThreads, 0, stream, params);
}

template <class T>
void launch_soft_cross_entropy_backward_tangent(const SoftCrossEntropyBackwardTangent<T>& params,
                                                Stream stream) {
  if (params.in.rows() == 0) return;
  TM_LAUNCH(cross_entropy_gradient_kernel<SoftCrossEntropyBackwardTangent<T>>,
            row_blocks(params.in), kThreads, 0, stream, params);
  launch_sum_rows(params.in, params.row_directional, params.directional, stream);
}

template void launch_soft_cross_entropy_forward(const SoftCrossEntropyForward<float>&, Stream);
template void launch_soft_cross_entropy_forward(const SoftCrossEntropyForward<double>&, Stream);
template void launch_soft_cross_entropy_backward(const SoftCrossEntropyBackward<float>&, Stream);
template void launch_soft_cross_entropy_backward(const SoftCrossEntropyBackward<double>&, Stream);
template void launch_soft_cross_entropy_backward_tangent(
    const SoftCrossEntropyBackwardTangent<float>&, Stream);
template void launch_soft_cross_entropy_backward_tangent(
    const SoftCrossEntropyBackwardTangent<double>&, Stream);

}  // namespace trajmatch::cuda
