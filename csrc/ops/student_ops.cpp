// The operators of the student engine for one batch: the logits, the gradient of the loss, and the
// directional derivative of that gradient.

#include "core/student_host.h"
#include "ops/operators.h"
#include "ops/student.h"
#include "ops/student_checks.h"

namespace trajmatch {

namespace {

// Checks the images of a batch and converts them to the layout of the engine. A linear first layer
// reads each image as one row in the order (C, H, W), all others channels-last.
Tensor checked_images(const Check& check, const Network& network, const Tensor& theta,
                      const Tensor& images) {
  check_theta(check, theta, "theta", network);
  check_images(check, images, theta, network);
  check_batch(check, network, images.size(theta.dim() - 1));
  const bool linear = network.nodes.front().convolution.is_linear();
  return linear ? joined_trajectories(theta, images) : joined_images(theta, images);
}

// Does the same for all tensors of a batch.
StudentProblem student_problem(const Check& check, const Network& network, const Tensor& theta,
                               const Tensor& images, const Tensor& labels, int64_t loss,
                               double scale) {
  const Tensor inputs = checked_images(check, network, theta, images);
  const StudentLoss kind = loss_kind(check, loss);
  check_labels_of(check, kind, labels, theta, "theta", images.size(theta.dim() - 1), network);
  return {VectorPart::whole(as_contiguous(theta)),
          inputs,
          VectorPart::whole(as_contiguous(labels)),
          kind,
          scale,
          trajectories_of(theta)};
}

// A tensor of these sizes, or an empty one that stands for "not wanted".
Tensor empty_if(bool wanted, const Ints& sizes, const Tensor& like) {
  return empty(wanted ? sizes : Ints{0}, like);
}

}  // namespace

void release_workspace() { release_student_memory(); }

Tensor student_logits(const Tensor& theta, const Tensor& images, const Ints& network_description) {
  const Check check("logits");
  const Network network = read_network(check, network_description);
  check.dim(theta, "theta", 1);
  const Tensor inputs = checked_images(check, network, theta, images);
  const NoGrad no_grad;
  const Device device(theta);
  return with_dtype(theta, [&](auto type) {
    return Student<decltype(type)>(network, theta).logits(as_contiguous(theta), inputs);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> student_gradient(
    const Tensor& theta, const Tensor& images, const Tensor& labels,
    const Ints& network_description, int64_t loss, double scale, bool input_gradients) {
  const Check check("gradient");
  const Network network = read_network(check, network_description);
  const StudentProblem problem =
      student_problem(check, network, theta, images, labels, loss, scale);
  const NoGrad no_grad;
  const Device device(theta);
  const bool label_gradients = input_gradients && problem.soft_labels();
  Tensor value = empty(sizes_like(theta, {}), theta), grad_theta = empty(sizes_of(theta), theta);
  Tensor grad_labels = empty_if(label_gradients, sizes_of(labels), theta);
  const Tensor statistics = empty(sizes_like(theta, {3, network.batch_norm_channels}), theta);
  OptionalTensor grad_images;
  if (input_gradients) grad_images = empty_channels_last(sizes_of(problem.images), theta);
  with_dtype(theta, [&](auto type) {
    Student<decltype(type)>(network, theta, problem.trajectories)
        .gradient(problem, value, grad_theta, grad_images,
                  label_gradients ? OptionalTensor(grad_labels) : std::nullopt, std::nullopt,
                  statistics);
  });
  return {value, grad_theta, grad_images ? images_like(images, *grad_images) : empty({0}, theta),
          grad_labels, statistics};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> student_gradient_jvp(
    const Tensor& theta, const Tensor& images, const Tensor& labels, const OptionalTensor& tangent,
    const OptionalTensor& image_tangent, const OptionalTensor& label_tangent,
    const Ints& network_description, int64_t loss, double scale) {
  const Check check("gradient_jvp");
  const Network network = read_network(check, network_description);
  const StudentProblem problem =
      student_problem(check, network, theta, images, labels, loss, scale);
  StudentTangents tangents;
  if (tangent) {
    check.same(*tangent, "tangent", theta, "theta");
    tangents.theta = as_contiguous(*tangent);
  }
  if (image_tangent) {
    check.same(*image_tangent, "image_tangent", images, "images");
    tangents.images = joined_images(theta, *image_tangent);
  }
  if (label_tangent) {
    check.that(problem.soft_labels(), "label_tangent", "be absent for class indices", "a tensor");
    check.same(*label_tangent, "label_tangent", labels, "labels");
    tangents.labels = as_contiguous(*label_tangent);
  }
  const NoGrad no_grad;
  const Device device(theta);
  // The engine needs a tangent of theta or of the images. If neither is given, the tangent of the
  // images is zero.
  if (!tangent && !image_tangent) {
    Tensor still = empty_channels_last(sizes_of(problem.images), theta);
    torch::stable::zero_(still);
    tangents.images = still;
  }
  Tensor directional = empty(sizes_like(theta, {}), theta);
  Tensor grad_theta = empty(sizes_of(theta), theta);
  Tensor grad_images = empty_channels_last(sizes_of(problem.images), theta);
  Tensor grad_labels = empty_if(problem.soft_labels(), sizes_of(labels), theta);
  with_dtype(theta, [&](auto type) {
    Student<decltype(type)>(network, theta, problem.trajectories)
        .gradient_jvp(problem, tangents, VectorPart::whole(directional), grad_theta, grad_images,
                      problem.soft_labels() ? OptionalTensor(grad_labels) : std::nullopt,
                      std::nullopt);
  });
  return {directional, grad_theta, images_like(images, grad_images), grad_labels};
}

}  // namespace trajmatch
