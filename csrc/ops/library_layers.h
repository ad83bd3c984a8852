// Makes the layer for one node of any kind. Sums, means and convolutions are calls to PyTorch,
// except for convolutions on the CPU that core/convolution.h supports. Norm, activation and pooling
// run core/norm_act_pool.h.
#pragma once

#include <memory>

#include "ops/layer.h"

namespace trajmatch {

template <class T>
std::unique_ptr<Layer> library_layer(LayerCall& call, size_t node);

}  // namespace trajmatch
