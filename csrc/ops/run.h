// Runs an operation of core/ on the device of its tensors: the CPU loops on the threads of torch,
// or the CUDA launcher on the current stream. Callers are the same for both.
#pragma once

#include <vector>

#include "core/batch_rows.h"
#include "core/classifier.h"
#include "core/dsa.h"
#include "core/norm_act_pool.h"
#include "core/optimiser_step.h"
#include "core/param_distance.h"
#include "core/sgd_step.h"
#include "core/soft_cross_entropy.h"
#include "ops/torch_api.h"

namespace trajmatch {

// Number of elements of a vector that justify a thread.
constexpr int64_t kElementGrain = 16384;

template <class Body>
inline void in_parallel(int64_t count, int64_t grain, const Body& body) {
  torch::stable::parallel_for(0, count, grain, body);
}

#ifdef TRAJMATCH_WITH_CUDA
#define TM_ON_CUDA(launcher)                 \
  if (device.is_cuda()) {                    \
    cuda::launcher(params, device.stream()); \
    return;                                  \
  }
#else
#define TM_ON_CUDA(launcher) (void)device;
#endif

// Calls kernel(params, begin, end, phase, means) for ranges of images on several threads: once, or
// once per phase for a batch norm. `count` is the number of means per channel that a batch norm
// passes from the first phase to the second; `variances` as in means_over_batch.
template <class T, class Params, class Kernel>
void on_images(const Params& params, int64_t count, const Kernel& kernel, bool variances = false) {
  const NormActPoolShape& shape = params.shape;
  const auto each_image = [&](cpu::NormPhase phase, const cpu::BatchMeans<T>& means) {
    in_parallel(shape.batch, 1, [&](int64_t b, int64_t e) { kernel(params, b, e, phase, means); });
  };
  if (!shape.over_batch) return each_image(cpu::NormPhase::kBoth, {});
  std::vector<T> each(shape.batch * count * shape.channels), all(count * shape.channels);
  const cpu::BatchMeans<T> means{each.data(), all.data()};
  each_image(cpu::NormPhase::kSums, means);
  cpu::means_over_batch(shape, count, variances, means);
  each_image(cpu::NormPhase::kUse, means);
}

// CUDA takes a batch norm as a norm over a single image.
template <class Params>
Params as_there(Params params, const Device& device) {
  if (device.is_cuda() && params.shape.over_batch) params.shape = params.shape.as_one_image();
  return params;
}

template <class T>
void run(const NormActPoolForward<T>& given, const Device& device) {
  const auto params = as_there(given, device);
  TM_ON_CUDA(launch_norm_act_pool_forward)
  on_images<T>(params, 2, [](const auto&... part) { cpu::norm_act_pool_forward(part...); }, true);
}

template <class T>
void run(const NormActPoolBackward<T>& given, const Device& device) {
  const auto params = as_there(given, device);
  TM_ON_CUDA(launch_norm_act_pool_backward)
  on_images<T>(params, 2, [](const auto&... part) { cpu::norm_act_pool_backward(part...); });
  if (params.grad_weight != nullptr) {
    cpu::sum_partial_affine(params.shape, params.partial_grad_affine, params.grad_weight,
                            params.grad_bias);
  }
}

template <class T>
void run(const NormActPoolTangent<T>& given, const Device& device) {
  const auto params = as_there(given, device);
  TM_ON_CUDA(launch_norm_act_pool_tangent)
  on_images<T>(params, 2, [](const auto&... part) { cpu::norm_act_pool_tangent(part...); });
}

template <class T>
void run(const NormActPoolBackwardTangent<T>& given, const Device& device) {
  const auto params = as_there(given, device);
  TM_ON_CUDA(launch_norm_act_pool_backward_tangent)
  on_images<T>(params, 4,
               [](const auto&... part) { cpu::norm_act_pool_backward_tangent(part...); });
  if (params.grad_weight_tangent != nullptr) {
    cpu::sum_partial_affine(params.shape, params.partial_grad_affine, params.grad_weight_tangent,
                            params.grad_bias_tangent);
  }
}

template <class T>
void run(const SoftCrossEntropyForward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_soft_cross_entropy_forward)
  cpu::soft_cross_entropy_forward(params, 0, params.in.batch);
  cpu::sum_rows(params.row_loss, params.in.batch, params.loss);
}

template <class T>
void run(const SoftCrossEntropyBackward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_soft_cross_entropy_backward)
  cpu::soft_cross_entropy_backward(params, 0, params.in.batch);
}

template <class T>
void run(const SoftCrossEntropyBackwardTangent<T>& params, const Device& device) {
  TM_ON_CUDA(launch_soft_cross_entropy_backward_tangent)
  cpu::soft_cross_entropy_backward_tangent(params, 0, params.in.batch);
  cpu::sum_rows(params.row_directional, params.in.batch, params.directional);
}

template <class T>
void run(const ParamDistance<T>& params, const Device& device) {
  TM_ON_CUDA(launch_param_distance)
  in_parallel(kReductionBlocks, 1 + kElementGrain * kReductionBlocks / (params.size + 1),
              [&](int64_t b, int64_t e) { cpu::param_distance_partial(params, b, e); });
  cpu::param_distance_finish(params);
}

template <class T>
void run(const ParamDistanceBackward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_param_distance_backward)
  in_parallel(params.size, kElementGrain,
              [&](int64_t b, int64_t e) { cpu::param_distance_backward(params, b, e); });
}

template <class T>
void run(const SgdStep<T>& params, const Device& device) {
  TM_ON_CUDA(launch_sgd_step)
  in_parallel(params.trajectories * params.size, kElementGrain,
              [&](int64_t b, int64_t e) { cpu::sgd_step(params, b, e); });
}

template <class T>
void run(const SgdStepAdjoint<T>& params, const Device& device) {
  TM_ON_CUDA(launch_sgd_step_adjoint)
  in_parallel(kReductionBlocks, 1 + kElementGrain * kReductionBlocks / (params.size + 1),
              [&](int64_t b, int64_t e) { cpu::sgd_step_adjoint_partial(params, b, e); });
  cpu::sgd_step_adjoint_finish(params);
}

template <class T>
void run(const SgdSweep<T>& params, const Device& device) {
  TM_ON_CUDA(launch_sgd_sweep)
  in_parallel(params.trajectories * params.size, kElementGrain,
              [&](int64_t b, int64_t e) { cpu::sgd_sweep(params, b, e); });
}

template <class T>
void run(const OptimiserStep<T>& params, const Device& device) {
  TM_ON_CUDA(launch_optimiser_step)
  in_parallel(params.size, kElementGrain,
              [&](int64_t b, int64_t e) { cpu::optimiser_step(params, b, e); });
}

template <class T>
void run(const OptimiserSweep<T>& params, const Device& device) {
  TM_ON_CUDA(launch_optimiser_sweep)
  in_parallel(kReductionBlocks, 1 + kElementGrain * kReductionBlocks / (params.size + 1),
              [&](int64_t b, int64_t e) { cpu::optimiser_sweep_partial(params, b, e); });
  cpu::optimiser_sweep_finish(params);
}

template <class T>
void run(const GatherRows<T>& params, const Device& device) {
  TM_ON_CUDA(launch_gather_rows)
  in_parallel(params.entries, 1 + kElementGrain / (params.row_size + 1),
              [&](int64_t b, int64_t e) { cpu::gather_rows(params, b, e); });
}

template <class T>
void run(const ScatterAddRows<T>& params, const Device& device) {
  TM_ON_CUDA(launch_scatter_add_rows)
  in_parallel(params.row_size, 1 + kElementGrain / (params.batch.count + 1),
              [&](int64_t b, int64_t e) { cpu::scatter_add_rows(params, b, e); });
}

template <class T>
void run(const ClassifierForward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_forward)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::classifier_forward(params, b, e); });
}

template <class T, class Loss>
void run(const ClassifierLoss<T, Loss>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_loss)
  run(params.classifier, device);
  run(params.loss, device);
}

template <class T>
void run(const ClassifierBackward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_backward)
  for (int i = 0; i < params.inputs; ++i) {
    in_parallel(params.weight.shape.batch, 1, [&](int64_t b, int64_t e) {
      cpu::classifier_input_gradient(params.input[i], b, e);
    });
  }
  in_parallel(params.weight.shape.classes, 1,
              [&](int64_t b, int64_t e) { cpu::classifier_weight_gradient(params.weight, b, e); });
}

template <class T>
void run(const Dsa<T>& params, const Device& device) {
  TM_ON_CUDA(launch_dsa)
  in_parallel(params.batch, 1 + kElementGrain / (params.image_size() + 1),
              [&](int64_t b, int64_t e) { cpu::dsa(params, b, e); });
}

#undef TM_ON_CUDA

}  // namespace trajmatch
