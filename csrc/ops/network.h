// Reads a description of a student network that comes from Python.
#pragma once

#include "core/network.h"
#include "ops/checks.h"

namespace trajmatch {

// `description` is the result of trajmatch.networks.engine_description(): in_channels, num_classes,
// image_size, 1 for `precise` or 0, a FusedKernels. Then follow eight integers per node: a
// NodeKind, the value that the node reads, and
//   kConvolution   channels, kernel, stride, padding, 1 with a bias or 0
//   kNormActPool   groups (0: no norm), parameters (0: none, 1: per channel, 2: per value of an
//                  image), 1 for a batch norm or 0, the bits of eps as a float64, activation,
//                  pooling
//   kAdd           the other value
//   kMean          side of the windows
// padded with zeros. The classifier reads the last value. Parameters are in the order of the nodes,
// followed by the classifier's.
Network read_network(const Check& check, const Ints& description);

}  // namespace trajmatch
