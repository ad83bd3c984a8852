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
    labels_ = joined_trajectories(theta, labels);
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
      augmented_ = image_rows();
    }
    step_images_ = image_rows();
    step_labels_ = label_rows();
  }

  int64_t steps() const { return static_cast<int64_t>(sizes_.size()); }

  // The problem of one step. Its images and labels are valid until the next gather, and with
  // augmentation until the next scatter_images.
  template <class T>
  StudentProblem gather(int64_t step, const VectorPart& theta, double scale,
                        const Device& device) const {
    const int64_t count = sizes_[step];
    const int64_t* index = read<int64_t>(indices_) + begins_[step];
    const Tensor &images = step_images_->of(count), &labels = step_labels_->of(count);
    gather_rows<T>(images_, index, images, device);
    if (labels.scalar_type() == ScalarType::Long) {
      gather_rows<int64_t>(labels_, index, labels, device);
    } else {
      gather_rows<T>(labels_, index, labels, device);
    }
    const Tensor& shown =
        augmentation_ ? augmented<T>(DsaPass::kForward, step, images, device) : images;
    return {theta, shown, labels, loss_, scale, trajectories_};
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
      scatter<T>(step, augmented<T>(DsaPass::kBackward, step, grad, device), lr, total, device);
    } else {
      scatter<T>(step, grad, lr, total, device);
    }
  }

  // The same for rows of any kind, which are not augmented.
  template <class T>
  void scatter(int64_t step, const Tensor& grad, const Tensor& lr, const Tensor& total,
               const Device& device) const {
    run(ScatterAddRows<T>{sizes_[step] / trajectories_, rows_, row_size(grad), read<T>(grad),
                          read<int64_t>(indices_) + begins_[step], read<T>(lr), write<T>(total),
                          trajectories_},
        device);
  }

 private:
  // Runs one pass of the augmentation over the images of a step (channels-last). The result is
  // valid until the next pass.
  template <class T>
  const Tensor& augmented(DsaPass pass, int64_t step, const Tensor& images,
                          const Device& device) const {
    const double* rows = read<double>(*augmentation_) + begins_[step] * kDsaColumns;
    const Tensor& result = augmented_->of(sizes_[step]);
    run_dsa<T>(pass, images, rows, true, result, device);
    return result;
  }

  template <class T>
  void gather_rows(const Tensor& from, const int64_t* index, const Tensor& to,
                   const Device& device) const {
    run(GatherRows<T>{to.size(0) / trajectories_, rows_, row_size(to), read<T>(from), index,
                      write<T>(to), trajectories_},
        device);
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
  Tensor images_, labels_, indices_;
  OptionalTensor augmentation_;
  Ints sizes_, begins_;  // of each step's indices, K B
  std::optional<StepRows> step_images_, step_labels_, augmented_;
};

}  // namespace trajmatch
