// The schemas and kernels of all operators: everything Python can call, on one page. The same
// function serves the CPU and CUDA; it picks the backend from its tensors.

#include "ops/operators.h"

STABLE_TORCH_LIBRARY(trajmatch, m) {
  m.def("param_distance(Tensor student, Tensor target, Tensor start) -> (Tensor, Tensor)");
  m.def(
      "param_distance_backward(Tensor grad_loss, Tensor student, Tensor target, Tensor start, "
      "Tensor sums) -> (Tensor, Tensor, Tensor)");

  m.def(
      "sgd_step(Tensor theta, Tensor grad, Tensor lr, Tensor? buffer, float momentum) -> "
      "(Tensor, Tensor)");
  m.def(
      "sgd_step_adjoint(Tensor grad_theta_out, Tensor? grad_buffer_out, Tensor buffer_out, "
      "Tensor lr, float momentum) -> (Tensor, Tensor, Tensor)");

  m.def(
      "norm_act_pool(Tensor x, Tensor? weight, Tensor? bias, int groups, bool elementwise, "
      "int activation, int pooling, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_pool_backward(Tensor grad_out, Tensor x, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor rstd, int groups, bool elementwise, int activation, int pooling, "
      "float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_pool_tangent(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, "
      "Tensor x_tangent, Tensor? weight_tangent, Tensor? bias_tangent, int groups, "
      "bool elementwise, int activation, int pooling, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_pool_backward_tangent(Tensor grad_out, Tensor? grad_out_tangent, Tensor x, "
      "Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, Tensor x_tangent, "
      "Tensor? weight_tangent, Tensor? bias_tangent, Tensor mean_tangent, Tensor projection, "
      "int groups, bool elementwise, int activation, int pooling, float eps) -> "
      "(Tensor, Tensor, Tensor)");

  m.def("soft_cross_entropy(Tensor logits, Tensor targets) -> Tensor");
  m.def(
      "soft_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor targets) -> "
      "(Tensor, Tensor)");
  m.def(
      "soft_cross_entropy_backward_tangent(Tensor grad_loss, Tensor logits, Tensor targets, "
      "Tensor? logits_tangent, Tensor? targets_tangent) -> (Tensor, Tensor, Tensor)");

  m.def("dsa(Tensor images, Tensor parameters) -> Tensor");
  m.def("dsa_tangent(Tensor images_tangent, Tensor parameters) -> Tensor");
  m.def("dsa_backward(Tensor grad_out, Tensor parameters) -> Tensor");

  m.def("student_logits(Tensor theta, Tensor images, int[] network) -> Tensor");
  m.def(
      "student_gradient(Tensor theta, Tensor images, Tensor labels, int[] network, int loss, "
      "float scale, bool input_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "student_gradient_jvp(Tensor theta, Tensor images, Tensor labels, Tensor? tangent, "
      "Tensor? image_tangent, Tensor? label_tangent, int[] network, int loss, float scale) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "student_unroll(Tensor theta0, Tensor images, Tensor labels, Tensor lr, Tensor state, "
      "Tensor batches, int[] batch_sizes, int[] steps, int[] network, float[] optimiser, "
      "int steps_done, int loss, float loss_scale, bool keep_trajectory, int tape_bytes, "
      "Tensor? augmentation=None, bool exact=True) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "student_unroll_adjoint(Tensor grad_thetas, Tensor? grad_state, Tensor trajectory, "
      "Tensor tapes, Tensor images, Tensor labels, Tensor lr, Tensor state, Tensor batches, "
      "int[] batch_sizes, int[] steps, int[] network, float[] optimiser, int steps_done, "
      "int loss, float loss_scale, Tensor? augmentation=None, bool exact=True) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

#define TM_IMPLEMENT(m, op) m.impl(#op, TORCH_BOX(&trajmatch::op))
#define TM_IMPLEMENT_ALL(m)                             \
  TM_IMPLEMENT(m, param_distance);                      \
  TM_IMPLEMENT(m, param_distance_backward);             \
  TM_IMPLEMENT(m, sgd_step);                            \
  TM_IMPLEMENT(m, sgd_step_adjoint);                    \
  TM_IMPLEMENT(m, norm_act_pool);                       \
  TM_IMPLEMENT(m, norm_act_pool_backward);              \
  TM_IMPLEMENT(m, norm_act_pool_tangent);               \
  TM_IMPLEMENT(m, norm_act_pool_backward_tangent);      \
  TM_IMPLEMENT(m, soft_cross_entropy);                  \
  TM_IMPLEMENT(m, soft_cross_entropy_backward);         \
  TM_IMPLEMENT(m, soft_cross_entropy_backward_tangent); \
  TM_IMPLEMENT(m, dsa);                                 \
  TM_IMPLEMENT(m, dsa_tangent);                         \
  TM_IMPLEMENT(m, dsa_backward);                        \
  TM_IMPLEMENT(m, student_logits);                      \
  TM_IMPLEMENT(m, student_gradient);                    \
  TM_IMPLEMENT(m, student_gradient_jvp);                \
  TM_IMPLEMENT(m, student_unroll);                      \
  TM_IMPLEMENT(m, student_unroll_adjoint)

STABLE_TORCH_LIBRARY_IMPL(trajmatch, CPU, m) { TM_IMPLEMENT_ALL(m); }
#ifdef TRAJMATCH_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(trajmatch, CUDA, m) { TM_IMPLEMENT_ALL(m); }
#endif
