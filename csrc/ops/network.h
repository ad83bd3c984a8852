// Reads the description of a student network that comes from Python.
#pragma once

#include "core/network.h"
#include "ops/checks.h"

namespace trajmatch {

// `description` is what trajmatch.networks.engine_description() gives: in_channels, num_classes,
// image_size, 1 for `precise` or 0, a FusedKernels; then eight integers for every node, a NodeKind,
// the value that it reads, and
//   kConvolution   channels, kernel, stride, padding, 1 with a bias or 0
//   kNormActPool   groups (0: no norm), parameters (0: none, 1: for each channel, 2: for each value
//                  of an image), 1 for a norm over the batch or 0, the bits of eps as a float64,
//                  activation, pooling
//   kAdd           the other value
//   kMean          side of the windows
// and zeros. The classifier reads the last value. Parameters lie in the order of the nodes.
Network read_network(const Check& check, const Ints& description);

}  // namespace trajmatch
