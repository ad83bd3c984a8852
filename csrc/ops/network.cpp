#include "ops/network.h"

namespace trajmatch {

namespace {

constexpr int64_t kGroupNormGroups = 4;  // METHODS of the papers: GroupNorm(4, C)
constexpr double kNormEps = 1e-5;        // PyTorch's default

int64_t norm_groups(Norm norm, int64_t width) {
  switch (norm) {
    case Norm::kInstance:
      return width;
    case Norm::kGroup:
      return kGroupNormGroups;
    case Norm::kLayer:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

Network read_network(const Check& check, const Ints& description) {
  check.that(description.size() == 10, "network", "be the 10 integers of engine_description()",
             text(description));
  Network network;
  network.in_channels = description[0];
  network.num_classes = description[1];
  network.image_size = description[2];
  const int64_t width = network.width = description[3];
  const int64_t depth = description[4];
  const Norm norm = network.norm = static_cast<Norm>(description[5]);
  const auto activation = static_cast<Activation>(description[6]);
  const auto pooling = static_cast<Pooling>(description[7]);
  const int64_t first_padding = description[8];
  bool valid = first_padding >= 1;
  for (int i = 0; i < 5; ++i) valid = valid && description[i] >= 1;
  valid = valid && description[5] >= 0 && description[5] <= 3 && description[6] >= 0 &&
          description[6] <= 3 && description[7] >= 0 && description[7] <= 2;
  valid = valid && (description[9] == 0 || description[9] == 1);
  valid = valid && (norm != Norm::kGroup || width % kGroupNormGroups == 0);
  check.that(valid, "network", "be the description of a ConvNet", text(description));

  int64_t offset = 0;
  const auto slice = [&](int64_t size) {
    const Slice result{offset, size};
    offset += size;
    return result;
  };
  int64_t channels = network.in_channels, size = network.image_size;
  for (int64_t index = 0; index < depth; ++index) {
    Block block;
    block.in_channels = channels;
    block.in_size = size;
    block.padding = index == 0 ? first_padding : 1;
    size += 2 * block.padding - 2;
    block.shape = {
        0,          size,    size,    width, norm_groups(norm, width), norm == Norm::kLayer,
        activation, pooling, kNormEps};
    block.weight = slice(width * channels * 9);
    block.bias = slice(width);
    if (norm != Norm::kNone) {
      block.norm_weight = slice(block.shape.affine_size());
      block.norm_bias = slice(block.shape.affine_size());
    }
    channels = width;
    size = block.shape.out_height();
    check.that(size >= 1, "network", "leave at least one pixel after every pooling",
               text(description));
    network.blocks.push_back(block);
  }
  network.feature_pixels = size * size;
  network.features = width * network.feature_pixels;
  network.classifier_weight = slice(network.num_classes * network.features);
  network.classifier_bias = slice(network.num_classes);
  network.num_parameters = offset;
  network.precise = description[9] == 1;
  return network;
}

}  // namespace trajmatch
