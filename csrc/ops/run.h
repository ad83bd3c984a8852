// Runs an operation of core/ where its tensors are: the CPU loops on torch's threads, or the CUDA
// launcher on the current stream. The host code above this header is the same for both.
#pragma once

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

// Elements of a vector that are worth a thread of their own.
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

template <class T>
void run(const NormActPoolForward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_norm_act_pool_forward)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::norm_act_pool_forward(params, b, e); });
}

template <class T>
void run(const NormActPoolBackward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_norm_act_pool_backward)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::norm_act_pool_backward(params, b, e); });
  if (params.grad_weight != nullptr) {
    cpu::sum_partial_affine(params.shape, params.partial_grad_affine, params.grad_weight,
                            params.grad_bias);
  }
}

template <class T>
void run(const NormActPoolTangent<T>& params, const Device& device) {
  TM_ON_CUDA(launch_norm_act_pool_tangent)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::norm_act_pool_tangent(params, b, e); });
}

template <class T>
void run(const NormActPoolBackwardTangent<T>& params, const Device& device) {
  TM_ON_CUDA(launch_norm_act_pool_backward_tangent)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::norm_act_pool_backward_tangent(params, b, e); });
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
  in_parallel(params.size, kElementGrain,
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
  in_parallel(params.size, kElementGrain,
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
  in_parallel(params.count, 1 + kElementGrain / (params.row_size + 1),
              [&](int64_t b, int64_t e) { cpu::gather_rows(params, b, e); });
}

template <class T>
void run(const ScatterAddRows<T>& params, const Device& device) {
  TM_ON_CUDA(launch_scatter_add_rows)
  in_parallel(params.row_size, 1 + kElementGrain / (params.count + 1),
              [&](int64_t b, int64_t e) { cpu::scatter_add_rows(params, b, e); });
}

template <class T>
void run(const ClassifierForward<T>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_forward)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::classifier_forward(params, b, e); });
}

template <class T>
void run(const ClassifierInputGradient<T>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_input_gradient)
  in_parallel(params.shape.batch, 1,
              [&](int64_t b, int64_t e) { cpu::classifier_input_gradient(params, b, e); });
}

template <class T>
void run(const ClassifierWeightGradient<T>& params, const Device& device) {
  TM_ON_CUDA(launch_classifier_weight_gradient)
  in_parallel(params.shape.classes, 1,
              [&](int64_t b, int64_t e) { cpu::classifier_weight_gradient(params, b, e); });
}

template <class T>
void run(const Dsa<T>& params, const Device& device) {
  TM_ON_CUDA(launch_dsa)
  in_parallel(params.batch, 1 + kElementGrain / (params.image_size() + 1),
              [&](int64_t b, int64_t e) { cpu::dsa(params, b, e); });
}

#undef TM_ON_CUDA

}  // namespace trajmatch
