// Reads the description of a student network that comes from Python.
#pragma once

#include "core/network.h"
#include "ops/checks.h"

namespace trajmatch {

// `description` is ConvNet.engine_description(): in_channels, num_classes, image_size, width,
// depth, norm, activation, pooling, padding of the first convolution, 1 for `precise` or 0.
Network read_network(const Check& check, const Ints& description);

}  // namespace trajmatch
