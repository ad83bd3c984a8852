// The classifier of a student, followed by its loss: logits and their gradient, or the tangents of
// both (formulas: core/classifier.h, core/soft_cross_entropy.h).
//
// A block takes an image and computes its logits, kClasses at the same time. Then one warp
// differentiates the loss of the row. With many classes, blocks that take a few classes each are
// faster, and the loss has a launch of its own. Deterministic. No argument may alias another, but
// the loss reads what the classifier writes.

#include "cuda/classifier_logits.cuh"
#include "cuda/soft_cross_entropy_row.cuh"

namespace trajmatch::cuda {
namespace {

using namespace classifier;

constexpr int64_t kFewClasses = 16;

template <class T, class Loss>
__global__ void __launch_bounds__(kThreads, 2) classifier_loss_kernel(ClassifierLoss<T, Loss> p) {
  const int64_t image = blockIdx.x;
  for (int64_t first = 0; first < p.classifier.shape.classes; first += kClasses) {
    write_logits(p.classifier, image, first);
    __syncthreads();
  }
  if (threadIdx.x < kWarpSize) row_loss::differentiate(p.loss, image);
}

template <class T>
void launch_loss(const SoftCrossEntropyBackward<T>& params, Stream stream) {
  launch_soft_cross_entropy_backward(params, stream);
}
template <class T>
void launch_loss(const SoftCrossEntropyBackwardTangent<T>& params, Stream stream) {
  launch_soft_cross_entropy_backward_tangent(params, stream);
}

}  // namespace

template <class T, class Loss>
void launch_classifier_loss(const ClassifierLoss<T, Loss>& params, Stream stream) {
  const ClassifierShape& shape = params.classifier.shape;
  if (shape.classes > kFewClasses) {
    launch_classifier_forward(params.classifier, stream);
    return launch_loss(params.loss, stream);
  }
  TM_LAUNCH((classifier_loss_kernel<T, Loss>), grid_size(shape.trajectories * shape.batch),
            kThreads, 0, stream, params);
}

template void launch_classifier_loss(const ClassifierLoss<float, SoftCrossEntropyBackward<float>>&,
                                     Stream);
template void launch_classifier_loss(
    const ClassifierLoss<double, SoftCrossEntropyBackward<double>>&, Stream);
template void launch_classifier_loss(
    const ClassifierLoss<float, SoftCrossEntropyBackwardTangent<float>>&, Stream);
template void launch_classifier_loss(
    const ClassifierLoss<double, SoftCrossEntropyBackwardTangent<double>>&, Stream);

}  // namespace trajmatch::cuda
