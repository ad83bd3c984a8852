// The operators of the student engine: one gradient, one directional derivative of it, and the
// whole unrolled inner loop with its adjoint (DESIGN: one step's activations and N parameter
// vectors in memory, whatever N is).

#include <algorithm>
#include <map>
#include <optional>

#include "core/student_host.h"
#include "ops/checks.h"
#include "ops/dsa.h"
#include "ops/operators.h"
#include "ops/student.h"
#include "ops/workspace.h"

namespace trajmatch {

namespace {

void check_theta(const Check& check, const Tensor& theta, const char* name,
                 const Network& network) {
  check.floating(theta, name);
  check.shape(theta, name, {network.num_parameters});
}

void check_images(const Check& check, const Tensor& images, const Tensor& theta,
                  const Network& network) {
  check.dim(images, "images", 4);
  check.that(images.size(0) > 0, "images", "hold at least one image", text(sizes_of(images)));
  check.same(images, "images", theta, "theta",
             {images.size(0), network.in_channels, network.image_size, network.image_size});
}

StudentLoss loss_kind(const Check& check, int64_t loss) {
  check.that(loss == 0 || loss == 1, "loss", "be 0 (cross-entropy) or 1 (sum of logits)",
             std::to_string(loss));
  return static_cast<StudentLoss>(loss);
}

// The last steps of an unrolled loop whose tapes fit into so many elements, and where they lie.
class Tapes {
 public:
  // `size_of(batch)` is the size of one step's tape; 0: there is none.
  template <class SizeOf>
  Tapes(const Ints& batch_sizes, int64_t elements, const SizeOf& size_of)
      : begins_(batch_sizes.size()), sizes_(batch_sizes.size()) {
    first_ = static_cast<int64_t>(batch_sizes.size());
    int64_t batch = 0, size = 0;
    while (first_ > 0) {
      if (batch_sizes[first_ - 1] != batch) size = size_of(batch = batch_sizes[first_ - 1]);
      if (size == 0 || size > elements - total_) break;
      --first_;
      begins_[first_] = total_;
      sizes_[first_] = size;
      total_ += size;
    }
  }
  int64_t elements() const { return total_; }
  std::optional<VectorPart> of(const Tensor& tapes, int64_t step) const {
    if (step < first_) return std::nullopt;
    return VectorPart{tapes, begins_[step], sizes_[step]};
  }

 private:
  Ints begins_, sizes_;
  int64_t first_, total_ = 0;
};

// Checks one batch's tensors and puts them into the engine's layout.
StudentProblem student_problem(const Check& check, const Network& network, const Tensor& theta,
                               const Tensor& images, const Tensor& labels, int64_t loss,
                               double scale) {
  check_theta(check, theta, "theta", network);
  check_images(check, images, theta, network);
  const StudentLoss kind = loss_kind(check, loss);
  if (kind == StudentLoss::kCrossEntropy) {
    check_labels(check, labels, "labels", theta, "theta", images.size(0), network.num_classes);
  }
  return {VectorPart::whole(as_contiguous(theta)), as_channels_last(images), as_contiguous(labels),
          kind, scale};
}

Tensor empty_channels_last(const Ints& sizes, const Tensor& like) {
  return empty(sizes, like, std::nullopt, MemoryFormat::ChannelsLast);
}

// A scalar or vector of this many elements, or an empty one that stands for "not wanted".
Tensor empty_if(bool wanted, const Ints& sizes, const Tensor& like) {
  return empty(wanted ? sizes : Ints{0}, like);
}

}  // namespace

void release_workspace() { release_student_memory(); }

int64_t tape_elements(const Ints& network_description, const Ints& batch_sizes, int64_t tape_bytes,
                      bool float64) {
  const Network network = read_network(Check("unroll"), network_description);
  const int64_t size = float64 ? sizeof(double) : sizeof(float);
  return Tapes(batch_sizes, tape_bytes / size,
               [&](int64_t batch) {
                 return float64 ? cpu::student_tape_size<double>(network, batch)
                                : cpu::student_tape_size<float>(network, batch);
               })
      .elements();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> student_gradient(
    const Tensor& theta, const Tensor& images, const Tensor& labels,
    const Ints& network_description, int64_t loss, double scale, bool input_gradients) {
  const Check check("gradient");
  const Network network = read_network(check, network_description);
  const StudentProblem problem =
      student_problem(check, network, theta, images, labels, loss, scale);
  const NoGrad no_grad;
  const Device device(theta);
  const bool label_gradients = input_gradients && problem.soft_labels();
  Tensor value = empty({}, theta), grad_theta = empty({network.num_parameters}, theta);
  Tensor grad_labels = empty_if(label_gradients, sizes_of(labels), theta);
  OptionalTensor grad_images;
  if (input_gradients) grad_images = empty_channels_last(sizes_of(images), theta);
  with_dtype(theta, [&](auto type) {
    Student<decltype(type)>(network, theta)
        .gradient(problem, value, grad_theta, grad_images,
                  label_gradients ? OptionalTensor(grad_labels) : std::nullopt, std::nullopt);
  });
  return {value, grad_theta, grad_images ? as_contiguous(*grad_images) : empty({0}, theta),
          grad_labels};
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
    tangents.images = as_channels_last(*image_tangent);
  }
  if (label_tangent) {
    check.that(problem.soft_labels(), "label_tangent", "be absent for class indices", "a tensor");
    check.same(*label_tangent, "label_tangent", labels, "labels");
    tangents.labels = as_contiguous(*label_tangent);
  }
  const NoGrad no_grad;
  const Device device(theta);
  if (!tangent && !image_tangent) {
    Tensor still = empty_channels_last(sizes_of(images), theta);
    torch::stable::zero_(still);
    tangents.images = still;
  }
  Tensor directional = empty({}, theta), grad_theta = empty({network.num_parameters}, theta);
  Tensor grad_images = empty_channels_last(sizes_of(images), theta);
  Tensor grad_labels = empty_if(problem.soft_labels(), sizes_of(labels), theta);
  with_dtype(theta, [&](auto type) {
    Student<decltype(type)>(network, theta)
        .gradient_jvp(problem, tangents, VectorPart::whole(directional), grad_theta, grad_images,
                      problem.soft_labels() ? OptionalTensor(grad_labels) : std::nullopt,
                      std::nullopt);
  });
  return {directional, grad_theta, as_contiguous(grad_images), grad_labels};
}

namespace {

// Memory for the rows of one step, as tensors of as many rows as a step may have.
class StepRows {
 public:
  // Rows of the dtype and, but for their number, the sizes of `like`.
  StepRows(const Tensor& like, const Ints& counts, MemoryFormat format = MemoryFormat::Contiguous) {
    Ints sizes = sizes_of(like);
    sizes[0] = *std::max_element(counts.begin(), counts.end());
    const Tensor memory = empty(sizes, like, std::nullopt, format);
    const bool channels_last = format == MemoryFormat::ChannelsLast;
    for (int64_t count : counts) {
      sizes[0] = count;
      if (rows_.count(count) > 0) continue;
      rows_.emplace(count,
                    view(memory, 0, sizes,
                         channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes)));
    }
  }
  const Tensor& of(int64_t count) const { return rows_.at(count); }

 private:
  std::map<int64_t, Tensor> rows_;
};

// The student batches of an unrolled loop: rows of the synthetic set by index, each image augmented
// by its own row of `augmentation` where that is given.
class Batches {
 public:
  Batches(const Check& check, const Network& network, const Tensor& theta, const Tensor& images,
          const Tensor& labels, const Tensor& indices, const Ints& sizes,
          const OptionalTensor& augmentation)
      : images_(as_channels_last(images)), labels_(as_contiguous(labels)), sizes_(sizes) {
    check_images(check, images, theta, network);
    check_labels(check, labels, "labels", theta, "theta", images.size(0), network.num_classes);
    check.device(indices, "batches", theta, "theta");
    check.dtype(indices, "batches", ScalarType::Long);
    check.dim(indices, "batches", 1);
    indices_ = as_contiguous(indices);
    check.that(!sizes.empty(), "batches", "hold at least one step", "none");
    int64_t total = 0;
    begins_.reserve(sizes.size());
    for (int64_t size : sizes) {
      if (size <= 0) {
        check.value_error("batches", "hold at least one image in every step",
                          "sizes " + text(sizes));
      }
      begins_.push_back(total);
      total += size;
    }
    check.shape(indices, "batches", {total});
    if (!indices_.is_cuda()) check_range(check);
    if (augmentation) {
      check_dsa_parameters(check, *augmentation, "augmentation", theta, "theta", total);
      augmentation_ = as_contiguous(*augmentation);
      augmented_ = image_rows();
    }
    step_images_ = image_rows();
    step_labels_ = label_rows();
  }

  int64_t steps() const { return static_cast<int64_t>(sizes_.size()); }

  template <class T>
  StudentProblem gather(int64_t step, const VectorPart& theta, double scale,
                        const Device& device) const {
    const int64_t count = sizes_[step];
    const int64_t* index = read<int64_t>(indices_) + begins_[step];
    const Tensor &images = step_images_->of(count), &labels = step_labels_->of(count);
    run(GatherRows<T>{count, row_size(images_), read<T>(images_), index, write<T>(images)}, device);
    if (labels.scalar_type() == ScalarType::Long) {
      run(GatherRows<int64_t>{count, 1, read<int64_t>(labels_), index, write<int64_t>(labels)},
          device);
    } else {
      run(GatherRows<T>{count, row_size(labels_), read<T>(labels_), index, write<T>(labels)},
          device);
    }
    const Tensor& shown =
        augmentation_ ? augmented<T>(DsaPass::kForward, step, images, device) : images;
    return {theta, shown, labels, StudentLoss::kCrossEntropy, scale};
  }

  // Memory for what belongs to the images or labels of a step.
  StepRows image_rows() const { return {images_, sizes_, MemoryFormat::ChannelsLast}; }
  StepRows label_rows() const { return {labels_, sizes_}; }

  // total[index[i]] += lr * grad[i] for the images of one step, `grad` that of them augmented.
  template <class T>
  void scatter_images(int64_t step, const Tensor& grad, const Tensor& lr, const Tensor& total,
                      const Device& device) const {
    if (augmentation_) {
      scatter<T>(step, augmented<T>(DsaPass::kBackward, step, grad, device), lr, total, device);
    } else {
      scatter<T>(step, grad, lr, total, device);
    }
  }

  // The same for rows of any kind, not augmented.
  template <class T>
  void scatter(int64_t step, const Tensor& grad, const Tensor& lr, const Tensor& total,
               const Device& device) const {
    run(ScatterAddRows<T>{sizes_[step], row_size(total), read<T>(grad),
                          read<int64_t>(indices_) + begins_[step], read<T>(lr), write<T>(total)},
        device);
  }

 private:
  // One pass of the augmentation over images of the step, in the engine's layout; there until the
  // next pass.
  template <class T>
  const Tensor& augmented(DsaPass pass, int64_t step, const Tensor& images,
                          const Device& device) const {
    const double* rows = read<double>(*augmentation_) + begins_[step] * kDsaColumns;
    const Tensor& result = augmented_->of(sizes_[step]);
    run_dsa<T>(pass, images, rows, true, result, device);
    return result;
  }

  static int64_t row_size(const Tensor& tensor) { return tensor.numel() / tensor.size(0); }

  void check_range(const Check& check) const {
    const int64_t count = images_.size(0);
    const int64_t* index = read<int64_t>(indices_);
    for (int64_t i = 0; i < indices_.numel(); ++i) {
      if (index[i] >= 0 && index[i] < count) continue;
      check.value_error("batches", "hold indices in [0, " + std::to_string(count) + ")",
                        std::to_string(index[i]));
    }
  }

  Tensor images_, labels_, indices_;
  OptionalTensor augmentation_;
  Ints sizes_, begins_;
  std::optional<StepRows> step_images_, step_labels_, augmented_;
};

void check_steps(const Check& check, const Ints& steps, int64_t count) {
  check.that(!steps.empty(), "steps", "name at least one count of steps", "none");
  for (int64_t step : steps) {
    if (step >= 1 && step <= count) continue;
    check.value_error("steps", "lie in 1.." + std::to_string(count), std::to_string(step));
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> student_unroll(
    const Tensor& theta0, const Tensor& images, const Tensor& labels, const Tensor& lr,
    const Tensor& indices, const Ints& batch_sizes, const Ints& steps,
    const Ints& network_description, double momentum, double loss_scale, bool keep_trajectory,
    int64_t tape_bytes, const OptionalTensor& augmentation, bool /*of the adjoint*/) {
  const Check check("unroll");
  const Network network = read_network(check, network_description);
  check_theta(check, theta0, "theta0", network);
  check.same(lr, "lr", theta0, "theta0", {});
  const Batches batches(check, network, theta0, images, labels, indices, batch_sizes, augmentation);
  check_steps(check, steps, batches.steps());
  const NoGrad no_grad;
  const Device device(theta0);
  const int64_t size = network.num_parameters, count = batches.steps();
  const int64_t asked = static_cast<int64_t>(steps.size());
  Tensor thetas = empty({asked, size}, theta0);
  // Rows theta_0 .. theta_{N-1}; one row that every step overwrites where they are not kept.
  const Tensor trajectory = empty({keep_trajectory ? count : 1, size}, theta0);
  VectorPart theta{trajectory, 0, size};
  Tensor first = theta.tensor();
  copy(first, theta0);
  const Tensor last = empty({size}, theta0);
  Tensor tapes = empty({0}, theta0);
  with_dtype(theta0, [&](auto type) {
    using T = decltype(type);
    Student<T> student(network, theta0);
    const Tapes tape(batch_sizes, keep_trajectory ? tape_bytes / int64_t{sizeof(T)} : 0,
                     [&](int64_t batch) { return student.tape_size(batch); });
    tapes = empty_tape(tape.elements(), theta0);
    const Tensor loss = empty({}, theta0), grad = empty({size}, theta0);
    const Tensor buffer = empty({momentum == 0.0 ? 0 : size}, theta0);
    for (int64_t step = 0; step < count; ++step) {
      const StudentProblem problem = batches.gather<T>(step, theta, loss_scale, device);
      student.gradient(problem, loss, grad, std::nullopt, std::nullopt, tape.of(tapes, step));
      const bool has_row = keep_trajectory && step + 1 < count;
      const VectorPart next = has_row ? VectorPart{trajectory, (step + 1) * size, size}
                                      : (keep_trajectory ? VectorPart::whole(last) : theta);
      T* b = momentum == 0.0 ? nullptr : write<T>(buffer);
      run(SgdStep<T>{size, read<T>(theta), read<T>(grad), step == 0 ? nullptr : b, read<T>(lr),
                     momentum, write<T>(next), b},
          device);
      theta = next;
      for (int64_t i = 0; i < asked; ++i) {
        if (steps[i] != step + 1) continue;
        Tensor row = vector_view(thetas, i * size, size);
        copy(row, theta.tensor());
      }
    }
  });
  return {thetas, keep_trajectory ? trajectory : empty({0, size}, theta0), tapes};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> student_unroll_adjoint(
    const Tensor& grad_thetas, const Tensor& trajectory, const Tensor& tapes, const Tensor& images,
    const Tensor& labels, const Tensor& lr, const Tensor& indices, const Ints& batch_sizes,
    const Ints& steps, const Ints& network_description, double momentum, double loss_scale,
    const OptionalTensor& augmentation, bool exact) {
  const Check check("unroll_adjoint");
  const Network network = read_network(check, network_description);
  const int64_t size = network.num_parameters;
  const int64_t count = static_cast<int64_t>(batch_sizes.size());
  const int64_t asked = static_cast<int64_t>(steps.size());
  check.floating(trajectory, "trajectory");
  check.shape(trajectory, "trajectory", {count, size});
  check.same(grad_thetas, "grad_thetas", trajectory, "trajectory", {asked, size});
  check.same(lr, "lr", trajectory, "trajectory", {});
  check.same(tapes, "tapes", trajectory, "trajectory", {tapes.numel()});
  const Batches batches(check, network, trajectory, images, labels, indices, batch_sizes,
                        augmentation);
  check_steps(check, steps, count);
  const NoGrad no_grad;
  const Device device(trajectory);
  const Tensor above = as_contiguous(grad_thetas), thetas = as_contiguous(trajectory);
  const Tensor kept = as_contiguous(tapes);
  const bool soft = labels.scalar_type() != ScalarType::Long;
  Tensor grad_images = empty_channels_last(sizes_of(images), trajectory);
  torch::stable::zero_(grad_images);
  Tensor grad_labels = zeros(soft ? sizes_of(labels) : Ints{0}, trajectory);
  Tensor adjoint = zeros({size}, trajectory), r = zeros({size}, trajectory);
  const Tensor directional = empty({count}, trajectory);
  with_dtype(trajectory, [&](auto type) {
    using T = decltype(type);
    Student<T> student(network, trajectory);
    const Tapes tape(batch_sizes, tapes.numel(),
                     [&](int64_t batch) { return student.tape_size(batch); });
    const Tensor hessian_r = empty({size}, trajectory);
    const StepRows image_shares = batches.image_rows(), label_shares = batches.label_rows();
    const StudentTangents along_r{r, std::nullopt, std::nullopt};
    // adjoint += lr h + what enters after `step` steps; then, where a step follows below,
    // r = momentum r - adjoint. TESLA's approximation is without h.
    const auto sweep = [&](int64_t step, const T* h) {
      const T* inject = nullptr;
      for (int64_t i = 0; i < asked; ++i) {
        if (steps[i] != step) continue;
        if (inject != nullptr) {
          run(SgdSweep<T>{size, read<T>(lr), momentum, nullptr, inject, write<T>(adjoint), nullptr},
              device);
        }
        inject = read<T>(above) + i * size;
      }
      run(SgdSweep<T>{size, read<T>(lr), momentum, h, inject, write<T>(adjoint),
                      step > 0 ? write<T>(r) : nullptr},
          device);
    };
    sweep(count, nullptr);
    for (int64_t step = count; step-- > 0;) {
      const VectorPart theta{thetas, step * size, size};
      const StudentProblem problem = batches.gather<T>(step, theta, loss_scale, device);
      const Tensor& image_share = image_shares.of(batch_sizes[step]);
      OptionalTensor label_share;
      if (soft) label_share = label_shares.of(batch_sizes[step]);
      student.gradient_jvp(problem, along_r, VectorPart{directional, step, 1}, hessian_r,
                           image_share, label_share, tape.of(kept, step));
      batches.scatter_images<T>(step, image_share, lr, grad_images, device);
      if (soft) batches.scatter<T>(step, *label_share, lr, grad_labels, device);
      sweep(step, exact ? read<T>(hessian_r) : nullptr);
    }
  });
  return {adjoint, as_contiguous(grad_images), grad_labels, sum_all(directional)};
}

}  // namespace trajmatch
