// Checks that the operators of the student engine share.
#pragma once

#include "core/network.h"
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

}  // namespace trajmatch
