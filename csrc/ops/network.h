// Reads the description of a student network that comes from Python.
#pragma once

#include "core/network.h"
#include "ops/checks.h"

namespace trajmatch {

// `description` is what trajmatch.networks.engine_description() gives: in_channels, num_classes,
// image_size, 1 for `precise` or 0; then of every block the channels, kernel, stride and padding of
// its convolution (a kernel of 0: none), norm, activation and pooling.
Network read_network(const Check& check, const Ints& description);

}  // namespace trajmatch
