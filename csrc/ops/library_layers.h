// A layer for each kind of node: convolutions, sums and means are the library's, and norm,
// activation and pooling are core/norm_act_pool.h.
#pragma once

#include <memory>

#include "ops/layer.h"

namespace trajmatch {

template <class T>
std::unique_ptr<Layer> library_layer(LayerCall& call, size_t node);

}  // namespace trajmatch
