// The operators as C++ functions. registration.cpp defines their schemas; trajmatch/ops adds their
// derivatives and documentation. Shapes are the same as in the Python functions of these names.
#pragma once

#include "ops/torch_api.h"

namespace trajmatch {

std::tuple<Tensor, Tensor> param_distance(const Tensor& student, const Tensor& target,
                                          const Tensor& start);
std::tuple<Tensor, Tensor, Tensor> param_distance_backward(const Tensor& grad_loss,
                                                           const Tensor& student,
                                                           const Tensor& target,
                                                           const Tensor& start, const Tensor& sums);

std::tuple<Tensor, Tensor> sgd_step(const Tensor& theta, const Tensor& grad, const Tensor& lr,
                                    const OptionalTensor& buffer, double momentum);
std::tuple<Tensor, Tensor, Tensor> sgd_step_adjoint(const Tensor& grad_theta_out,
                                                    const OptionalTensor& grad_buffer_out,
                                                    const Tensor& buffer_out, const Tensor& lr,
                                                    double momentum);

std::tuple<Tensor, Tensor, Tensor> norm_act_pool(const Tensor& x, const OptionalTensor& weight,
                                                 const OptionalTensor& bias, int64_t groups,
                                                 bool elementwise, int64_t activation,
                                                 int64_t pooling, double eps);
std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward(
    const Tensor& grad_out, const Tensor& x, const OptionalTensor& weight,
    const OptionalTensor& bias, const Tensor& mean, const Tensor& rstd, int64_t groups,
    bool elementwise, int64_t activation, int64_t pooling, double eps);
std::tuple<Tensor, Tensor, Tensor> norm_act_pool_tangent(
    const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
    const Tensor& rstd, const Tensor& x_tangent, const OptionalTensor& weight_tangent,
    const OptionalTensor& bias_tangent, int64_t groups, bool elementwise, int64_t activation,
    int64_t pooling, double eps);
std::tuple<Tensor, Tensor, Tensor> norm_act_pool_backward_tangent(
    const Tensor& grad_out, const OptionalTensor& grad_out_tangent, const Tensor& x,
    const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
    const Tensor& rstd, const Tensor& x_tangent, const OptionalTensor& weight_tangent,
    const OptionalTensor& bias_tangent, const Tensor& mean_tangent, const Tensor& projection,
    int64_t groups, bool elementwise, int64_t activation, int64_t pooling, double eps);

Tensor soft_cross_entropy(const Tensor& logits, const Tensor& targets);
std::tuple<Tensor, Tensor> soft_cross_entropy_backward(const Tensor& grad_loss,
                                                       const Tensor& logits, const Tensor& targets);
std::tuple<Tensor, Tensor, Tensor> soft_cross_entropy_backward_tangent(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& targets,
    const OptionalTensor& logits_tangent, const OptionalTensor& targets_tangent);

// DSA with rows of parameters, its linear part, and the transpose of the linear part.
Tensor dsa(const Tensor& images, const Tensor& parameters);
Tensor dsa_tangent(const Tensor& images_tangent, const Tensor& parameters);
Tensor dsa_backward(const Tensor& grad_out, const Tensor& parameters);

// The student engine. `network` is the result of engine_description(), `loss` is a StudentLoss.
Tensor student_logits(const Tensor& theta, const Tensor& images, const Ints& network);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> student_gradient(
    const Tensor& theta, const Tensor& images, const Tensor& labels, const Ints& network,
    int64_t loss, double scale, bool input_gradients);
std::tuple<Tensor, Tensor, Tensor, Tensor> student_gradient_jvp(
    const Tensor& theta, const Tensor& images, const Tensor& labels, const OptionalTensor& tangent,
    const OptionalTensor& image_tangent, const OptionalTensor& label_tangent, const Ints& network,
    int64_t loss, double scale);
std::tuple<Tensor, Tensor, Tensor, Tensor> student_unroll(
    const Tensor& theta0, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Tensor& state, const Tensor& batches, const Ints& batch_sizes, const Ints& steps,
    const Ints& network, const Doubles& optimiser, int64_t steps_done, int64_t loss,
    double loss_scale, bool keep_trajectory, int64_t tape_bytes, const OptionalTensor& augmentation,
    bool exact);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> student_unroll_adjoint(
    const Tensor& grad_thetas, const OptionalTensor& grad_state, const Tensor& trajectory,
    const Tensor& tapes, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Tensor& state, const Tensor& batches, const Ints& batch_sizes, const Ints& steps,
    const Ints& network, const Doubles& optimiser, int64_t steps_done, int64_t loss,
    double loss_scale, const OptionalTensor& augmentation, bool exact);

}  // namespace trajmatch
