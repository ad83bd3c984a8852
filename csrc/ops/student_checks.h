// Checks shared by the operators of the student engine.
#pragma once

#include "core/network.h"
#include "core/soft_cross_entropy.h"
#include "ops/checks.h"

namespace trajmatch {

inline void check_theta(const Check& check, const Tensor& theta, const char* name,
                        const Network& network) {
  check.floating(theta, name);
  check.shape(theta, name, {network.num_parameters});
}

inline void check_images(const Check& check, const Tensor& images, const Tensor& theta,
                         const Network& network) {
  check.dim(images, "images", 4);
  check.that(images.size(0) > 0, "images", "hold at least one image", text(sizes_of(images)));
  check.same(images, "images", theta, "theta",
             {images.size(0), network.in_channels, network.image_size, network.image_size});
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
  check_labels(check, labels, "labels", theta, name, batch, network.num_classes);
}

}  // namespace trajmatch
