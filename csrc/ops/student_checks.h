// Checks shared by the operators of the student engine.
#pragma once

#include "core/network.h"
#include "core/soft_cross_entropy.h"
#include "ops/checks.h"
#include "ops/workspace.h"

namespace trajmatch {

// The most trajectories that one launch can take.
constexpr int64_t kMostTrajectories = 65535;

// Number of trajectories of parameters [P] (one), or [K, P].
inline int64_t trajectories_of(const Tensor& theta) { return theta.dim() == 2 ? theta.size(0) : 1; }

// `sizes` of one trajectory, with K before them if the parameters are [K, P].
inline Ints sizes_like(const Tensor& theta, Ints sizes) {
  if (theta.dim() == 2) sizes.insert(sizes.begin(), theta.size(0));
  return sizes;
}

// [K, n, ..] as [K n, ..] if the parameters are [K, P]; otherwise the tensor itself. The result is
// contiguous.
inline Tensor joined_trajectories(const Tensor& theta, const Tensor& tensor) {
  if (theta.dim() != 2) return as_contiguous(tensor);
  Ints sizes = sizes_of(tensor);
  sizes[1] *= sizes[0];
  sizes.erase(sizes.begin());
  return view(as_contiguous(tensor), 0, sizes, contiguous_strides(sizes));
}

// The same for images, in channels-last.
inline Tensor joined_images(const Tensor& theta, const Tensor& images) {
  return as_channels_last(theta.dim() == 2 ? joined_trajectories(theta, images) : images);
}

// Gradients in the images of all trajectories, [K n, C, H, W], contiguous and in the shape of the
// images.
inline Tensor images_like(const Tensor& images, const Tensor& gradients) {
  const Ints sizes = sizes_of(images);
  return view(as_contiguous(gradients), 0, sizes, contiguous_strides(sizes));
}

inline void check_theta(const Check& check, const Tensor& theta, const char* name,
                        const Network& network) {
  check.floating(theta, name);
  if (theta.dim() == 2) {
    check.that(theta.size(0) >= 1 && theta.size(0) <= kMostTrajectories, name,
               "have 1 to " + std::to_string(kMostTrajectories) + " rows", text(sizes_of(theta)));
  }
  check.shape(theta, name, sizes_like(theta, {network.num_parameters}));
}

inline void check_images(const Check& check, const Tensor& images, const Tensor& theta,
                         const Network& network) {
  check.dim(images, "images", theta.dim() == 2 ? 5 : 4);
  const int64_t count = images.size(theta.dim() - 1);
  check.that(count > 0, "images", "hold at least one image", text(sizes_of(images)));
  check.same(
      images, "images", theta, "theta",
      sizes_like(theta, {count, network.in_channels, network.image_size, network.image_size}));
}

// A batch norm needs more than one value per channel, as one value has no variance.
inline void check_batch(const Check& check, const Network& network, int64_t batch) {
  for (const Node& node : network.nodes) {
    if (!node.norm.shape.over_batch || node.norm.values(batch) > 1) continue;
    check.value_error("batches", "have more than one value for each channel of a batch norm",
                      "one image of 1x1");
  }
}

inline StudentLoss loss_kind(const Check& check, int64_t loss) {
  check.that(loss >= 0 && loss <= 3, "loss", "be a number of StudentLoss, 0 to 3",
             std::to_string(loss));
  return static_cast<StudentLoss>(loss);
}

inline void check_labels_of(const Check& check, StudentLoss loss, const Tensor& labels,
                            const Tensor& theta, const char* name, int64_t batch,
                            const Network& network) {
  if (loss == StudentLoss::kSumLogits) return;
  if (loss != StudentLoss::kCrossEntropy) check.dtype(labels, "labels", theta.scalar_type());
  const bool soft = labels.scalar_type() != ScalarType::Long;
  if (theta.dim() == 2) {
    check.shape(
        labels, "labels",
        soft ? Ints{theta.size(0), batch, network.num_classes} : Ints{theta.size(0), batch});
  }
  check_labels(check, joined_trajectories(theta, labels), "labels", theta, name,
               trajectories_of(theta) * batch, network.num_classes);
}

}  // namespace trajmatch
