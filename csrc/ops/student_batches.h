// The batches of synthetic images that an unrolled loop trains its student on, step by step.
#pragma once

#include <algorithm>
#include <map>
#include <optional>

#include "ops/dsa.h"
#include "ops/run.h"
#include "ops/student_checks.h"
#include "ops/student_problem.h"
#include "ops/workspace.h"

namespace trajmatch {

// Memory for the rows of one step, shared by all steps, with one view for each number of rows that
// a step may have.
class StepRows {
 public:
  // `like` gives the dtype and all sizes except the number of rows; `counts` has the number of rows
  // of each step.
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

// The student batches of an unrolled loop: rows of the synthetic set, selected by index. If
// `augmentation` is given, each image is augmented with its own row of it.
//
// Parameters [K, P] are those of K trajectories. Each then has a synthetic set of its own: images
// and labels are [K, n, ..], and the indices of a step are [K, B]. `batch_sizes` has the B of each
// step.
class Batches {
 public:
  Batches(const Check& check, const Network& network, const Tensor& theta, const Tensor& images,
          const Tensor& labels, int64_t loss, const Tensor& indices, const Ints& batch_sizes,
          const OptionalTensor& augmentation)
      : loss_(loss_kind(check, loss)), trajectories_(trajectories_of(theta)) {
    check_images(check, images, theta, network);
    check.that(loss_ != StudentLoss::kSumLogits, "loss", "be one with labels", "a sum of logits");
    rows_ = images.size(theta.dim() - 1);
    check_labels_of(check, loss_, labels, theta, "theta", rows_, network);
    images_ = joined_images(theta, images);
    check.device(indices, "batches", theta, "theta");
    check.dtype(indices, "batches", ScalarType::Long);
    check.dim(indices, "batches", 1);
    indices_ = as_contiguous(indices);
    check.that(!batch_sizes.empty(), "batches", "hold at least one step", "none");
    int64_t total = 0;
    begins_.reserve(batch_sizes.size());
    for (int64_t size : batch_sizes) {
      if (size <= 0) {
        check.value_error("batches", "hold at least one image in every step",
                          "sizes " + text(batch_sizes));
      }
      check_batch(check, network, size);
      begins_.push_back(total);
      sizes_.push_back(trajectories_ * size);
      total += sizes_.back();
    }
    check.shape(indices, "batches", {total});
    if (!indices_.is_cuda()) check_range(check);
    if (augmentation) {
      check_dsa_parameters(check, *augmentation, "augmentation", theta, "theta", total);
      augmentation_ = as_contiguous(*augmentation);
    }
    step_images_ = image_rows();
    const Device device(theta);
    const Tensor own = joined_trajectories(theta, labels);
    labels_ = own.scalar_type() == ScalarType::Long
                  ? labels_of_steps<int64_t>(own, device)
                  : with_dtype(own, [&](auto type) {
                      return labels_of_steps<decltype(type)>(own, device);
                    });
  }

  int64_t steps() const { return static_cast<int64_t>(sizes_.size()); }

  // The problem of one step. Its images are valid until the next gather or, with augmentation, the
  // next scatter_images, whichever comes first.
  template <class T>
  StudentProblem gather(int64_t step, const VectorPart& theta, double scale,
                        const Device& device) const {
    const Tensor& images = step_images_->of(sizes_[step]);
    if (augmentation_) {
      augment<T>(DsaPass::kForward, step, images_, images, device, entries(step));
    } else {
      gather_rows<T>(entries(step), images_, sizes_[step], write<T>(images), device);
    }
    const int64_t size = row_size(labels_);
    const VectorPart labels{labels_, begins_[step] * size, sizes_[step] * size};
    return {theta, images, labels, loss_, scale, trajectories_};
  }

  int64_t trajectories() const { return trajectories_; }

  // Memory for tensors shaped like the images or labels of a step, of all trajectories.
  StepRows image_rows() const { return {images_, sizes_, MemoryFormat::ChannelsLast}; }
  StepRows label_rows() const { return {labels_, sizes_}; }

  // Zeros, shaped like the images of all trajectories, for scatter_images.
  Tensor zero_images() const {
    Tensor result = empty_channels_last(sizes_of(images_), images_);
    torch::stable::zero_(result);
    return result;
  }

  // The rows of a step in such memory.
  const Tensor& of(const StepRows& rows, int64_t step) const { return rows.of(sizes_[step]); }

  // total[index[i]] += lr * grad[i] for the images of one step. `grad` is the gradient in the
  // augmented images, [K B, C, H, W]; `lr` is [K].
  template <class T>
  void scatter_images(int64_t step, const Tensor& grad, const Tensor& lr, const Tensor& total,
                      const Device& device) const {
    if (augmentation_) {
      const Tensor& images = step_images_->of(sizes_[step]);
      augment<T>(DsaPass::kBackward, step, grad, images, device);
      scatter<T>(step, images, lr, total, device);
    } else {
      scatter<T>(step, grad, lr, total, device);
    }
  }

  // The same for rows of any kind, which are not augmented.
  template <class T>
  void scatter(int64_t step, const Tensor& grad, const Tensor& lr, const Tensor& total,
               const Device& device) const {
    run(ScatterAddRows<T>{entries(step), row_size(grad), read<T>(grad), read<T>(lr),
                          write<T>(total)},
        device);
  }

 private:
  // The rows of the synthetic sets that a step selects.
  BatchIndex entries(int64_t step) const {
    return {read<int64_t>(indices_) + begins_[step], sizes_[step] / trajectories_, rows_,
            trajectories_};
  }

  // Runs one pass of the augmentation of a step over channels-last images.
  template <class T>
  void augment(DsaPass pass, int64_t step, const Tensor& from, const Tensor& to,
               const Device& device, const BatchIndex& batch = {}) const {
    const double* rows = read<double>(*augmentation_) + begins_[step] * kDsaColumns;
    run_dsa<T>(pass, from, rows, true, to, device, batch);
  }

  template <class T>
  static void gather_rows(const BatchIndex& batches, const Tensor& from, int64_t count, T* to,
                          const Device& device) {
    run(GatherRows<T>{batches, count, row_size(from), read<T>(from), to}, device);
  }

  // Gathers the labels of all steps into one tensor, step after step: one launch for all steps if
  // there is one trajectory, else one for each run of consecutive steps of the same size.
  template <class T>
  Tensor labels_of_steps(const Tensor& labels, const Device& device) const {
    Ints sizes = sizes_of(labels);
    sizes[0] = indices_.numel();
    const Tensor result = empty(sizes, labels);
    for (int64_t step = 0, end; step < steps(); step = end) {
      int64_t count = 0;
      for (end = step; end < steps() && (trajectories_ == 1 || sizes_[end] == sizes_[step]);
           ++end) {
        count += sizes_[end];
      }
      gather_rows<T>(entries(step), labels, count,
                     write<T>(result) + begins_[step] * row_size(labels), device);
    }
    return result;
  }

  static int64_t row_size(const Tensor& tensor) { return tensor.numel() / tensor.size(0); }

  void check_range(const Check& check) const {
    const int64_t count = rows_;
    const int64_t* index = read<int64_t>(indices_);
    for (int64_t i = 0; i < indices_.numel(); ++i) {
      if (index[i] >= 0 && index[i] < count) continue;
      check.value_error("batches", "hold indices in [0, " + std::to_string(count) + ")",
                        std::to_string(index[i]));
    }
  }

  StudentLoss loss_;
  int64_t trajectories_, rows_;  // K, n
  Tensor images_, indices_;
  Tensor labels_;  // of all steps
  OptionalTensor augmentation_;
  Ints sizes_, begins_;  // of each step's indices, K B
  std::optional<StepRows> step_images_;
};

}  // namespace trajmatch
