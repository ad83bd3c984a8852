// The unrolled inner loop and its adjoint (docs/idea.md). With N steps, two buffers grow with N:
// the trajectory (the parameters of each step) and the labels of all steps. Activations are kept
// for one step, and in addition for as many of the last steps as fit into `tape_bytes`. The loops
// allocate their own buffers before the first step.
//
// Parameters [K, P] are those of K trajectories: students that train side by side, each on a
// synthetic set and with a step size of its own. Every vector below then has K P elements.

#include "core/student_host.h"
#include "ops/inner_optimiser.h"
#include "ops/operators.h"
#include "ops/student.h"
#include "ops/student_batches.h"
#include "ops/tapes.h"

namespace trajmatch {

namespace {

void check_steps(const Check& check, const Ints& steps, int64_t count) {
  check.that(!steps.empty(), "steps", "have at least one entry", "none");
  for (int64_t step : steps) {
    if (step >= 1 && step <= count) continue;
    check.value_error("steps", "lie in 1.." + std::to_string(count), std::to_string(step));
  }
}

}  // namespace

int64_t tape_elements(const Ints& network_description, const Ints& batch_sizes, int64_t tape_bytes,
                      bool float64, bool cuda, int64_t trajectories) {
  const Network network = read_network(Check("unroll"), network_description);
  const int64_t size = float64 ? sizeof(double) : sizeof(float);
  return Tapes(batch_sizes, tape_bytes / size,
               [&](int64_t batch) {
                 return float64 ? Student<double>::tape_size(network, batch, trajectories, cuda)
                                : Student<float>::tape_size(network, batch, trajectories, cuda);
               })
      .elements();
}

bool runs_by_images(const Ints& network_description) {
  return !read_network(Check("runs_by_images"), network_description).blocks.empty();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> student_unroll(
    const Tensor& theta0, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Tensor& state, const Tensor& indices, const Ints& batch_sizes, const Ints& steps,
    const Ints& network_description, const Doubles& numbers, int64_t steps_done, int64_t loss_kind,
    double loss_scale, bool keep_trajectory, int64_t tape_bytes, const OptionalTensor& augmentation,
    bool /*of the adjoint*/) {
  const Check check("unroll");
  const Network network = read_network(check, network_description);
  check_theta(check, theta0, "theta0", network);
  const Batches batches(check, network, theta0, images, labels, loss_kind, indices, batch_sizes,
                        augmentation);
  const int64_t size = theta0.numel();  // of all trajectories
  const int64_t count = batches.steps();
  const InnerOptimiser optimiser(check, network, theta0, lr, state, numbers, steps_done, count);
  check_steps(check, steps, count);
  const NoGrad no_grad;
  const Device device(theta0);
  const int64_t asked = static_cast<int64_t>(steps.size());
  Ints sizes = sizes_of(theta0);
  sizes.insert(sizes.begin(), asked);
  Tensor thetas = empty(sizes, theta0);
  // The trajectory has one row per step: theta_0 .. theta_{N-1} and the other vectors that the
  // optimiser keeps. If it is not kept, it is a single theta that every step overwrites.
  const int64_t row = optimiser.vectors() * size;
  const Tensor trajectory =
      keep_trajectory ? empty({count, row}, theta0) : empty({1, size}, theta0);
  VectorPart theta{trajectory, 0, size};
  Tensor first = theta.tensor();
  copy(first, VectorPart::whole(as_contiguous(theta0)).tensor());
  const Tensor last = empty({size}, theta0), memory = optimiser.memory();
  Tensor tapes = empty({0}, theta0);
  with_dtype(theta0, [&](auto type) {
    using T = decltype(type);
    const int64_t trajectories = batches.trajectories();
    Student<T> student(network, theta0, trajectories);
    const Tapes tape(batch_sizes, keep_trajectory ? tape_bytes / int64_t{sizeof(T)} : 0,
                     [&](int64_t batch) {
                       return Student<T>::tape_size(network, batch, trajectories, on_cuda(theta0));
                     });
    tapes = empty_tape(tape.elements(), theta0);
    const Tensor grad = empty({size}, theta0);
    OptionalTensor loss;  // is not read
    if (!device.is_cuda()) loss = empty({trajectories}, theta0);
    for (int64_t step = 0; step < count; ++step) {
      const StudentProblem problem = batches.gather<T>(step, theta, loss_scale, device);
      student.gradient(problem, loss, grad, std::nullopt, std::nullopt, tape.of(tapes, step));
      // theta after the last step has no row in the trajectory.
      const bool has_row = keep_trajectory && step + 1 < count;
      const VectorPart next = has_row ? VectorPart{trajectory, (step + 1) * row, size}
                                      : (keep_trajectory ? VectorPart::whole(last) : theta);
      optimiser.step(step, theta, grad, memory, next,
                     keep_trajectory ? write<T>(trajectory) + step * row : nullptr, device);
      theta = next;
      for (int64_t i = 0; i < asked; ++i) {
        // `steps` counts from 1: theta after this step.
        if (steps[i] != step + 1) continue;
        Tensor found = vector_view(thetas, i * size, size);
        copy(found, theta.tensor());
      }
    }
  });
  return {thetas, optimiser.vectors() == 1 ? empty({0, network.num_parameters}, theta0) : memory,
          keep_trajectory ? trajectory : empty({0, row}, theta0), tapes};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> student_unroll_adjoint(
    const Tensor& grad_thetas, const OptionalTensor& grad_state, const Tensor& trajectory,
    const Tensor& tapes, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Tensor& state, const Tensor& indices, const Ints& batch_sizes, const Ints& steps,
    const Ints& network_description, const Doubles& numbers, int64_t steps_done, int64_t loss_kind,
    double loss_scale, const OptionalTensor& augmentation, bool exact) {
  const Check check("unroll_adjoint");
  const Network network = read_network(check, network_description);
  const int64_t count = static_cast<int64_t>(batch_sizes.size());
  const int64_t asked = static_cast<int64_t>(steps.size());
  check.floating(trajectory, "trajectory");
  check_steps(check, steps, count);
  Ints sizes = sizes_of(grad_thetas);
  check.that(sizes.size() >= 2 && sizes[0] == asked, "grad_thetas",
             "have a row for each of the steps", text(sizes));
  const NoGrad no_grad;
  const Tensor above = as_contiguous(grad_thetas), kept_steps = as_contiguous(trajectory);
  // A row has the shape of theta0.
  sizes.erase(sizes.begin());
  const Tensor first_row = view(above, 0, sizes, contiguous_strides(sizes));
  check_theta(check, first_row, "grad_thetas", network);
  const InnerOptimiser optimiser(check, network, first_row, lr, state, numbers, steps_done, count);
  const int64_t size = first_row.numel();  // of all trajectories
  const int64_t row = optimiser.vectors() * size;
  check.same(trajectory, "trajectory", grad_thetas, "grad_thetas", {count, row});
  check.same(tapes, "tapes", trajectory, "trajectory", {tapes.numel()});
  const Batches batches(check, network, first_row, images, labels, loss_kind, indices, batch_sizes,
                        augmentation);
  const Device device(trajectory);
  const Tensor kept = as_contiguous(tapes);
  const bool soft = labels.scalar_type() != ScalarType::Long;
  const Tensor grad_images = batches.zero_images();
  Tensor grad_labels = zeros(soft ? sizes_of(labels) : Ints{0}, trajectory);
  const InnerOptimiser::Adjoint adjoint = optimiser.adjoint(check, grad_state);
  const int64_t trajectories = batches.trajectories();
  const Tensor directional = empty({count, trajectories}, trajectory);
  with_dtype(trajectory, [&](auto type) {
    using T = decltype(type);
    Student<T> student(network, trajectory, trajectories);
    const Tapes tape(batch_sizes, tapes.numel(), [&](int64_t batch) {
      return Student<T>::tape_size(network, batch, trajectories, on_cuda(trajectory));
    });
    const Tensor hessian_r = empty({size}, trajectory);
    const StepRows image_shares = batches.image_rows(), label_shares = batches.label_rows();
    const StudentTangents along_r{adjoint.r, std::nullopt, std::nullopt};
    // Moves the adjoint back to theta after `remaining` steps, with h = H r of the step after it
    // and the gradients that enter there. TESLA's approximation leaves h out (null).
    const auto sweep = [&](int64_t remaining, const T* h) {
      const T* inject = nullptr;
      for (int64_t i = 0; i < asked; ++i) {
        if (steps[i] != remaining) continue;
        // `steps` may name a count more than once. The optimiser takes one gradient, so all but the
        // last are added to the adjoint here.
        if (inject != nullptr) {
          run(SgdSweep<T>{network.num_parameters, read<T>(adjoint.scale), 0, nullptr, inject,
                          write<T>(adjoint.theta), nullptr, trajectories},
              device);
        }
        inject = read<T>(above) + i * size;
      }
      optimiser.sweep(remaining, kept_steps, h, inject, adjoint, device);
    };
    sweep(count, nullptr);
    for (int64_t step = count; step-- > 0;) {
      const VectorPart theta{kept_steps, step * row, size};
      const StudentProblem problem = batches.gather<T>(step, theta, loss_scale, device);
      const Tensor& image_share = batches.of(image_shares, step);
      OptionalTensor label_share;
      if (soft) label_share = batches.of(label_shares, step);
      // Along r, written by the previous sweep, one directional derivative gives h and the shares
      // of this step in the gradients of images, labels and lr.
      student.gradient_jvp(problem, along_r,
                           VectorPart{directional, step * trajectories, trajectories}, hessian_r,
                           image_share, label_share, tape.of(kept, step));
      batches.scatter_images<T>(step, image_share, adjoint.scale, grad_images, device);
      if (soft) batches.scatter<T>(step, *label_share, adjoint.scale, grad_labels, device);
      sweep(step, exact ? read<T>(hessian_r) : nullptr);
    }
  });
  return {adjoint.theta, images_like(images, grad_images), grad_labels,
          optimiser.grad_lr(adjoint, directional), adjoint.state};
}

}  // namespace trajmatch
