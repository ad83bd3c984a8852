#include "ops/network.h"

namespace trajmatch {

namespace {

constexpr int64_t kGroupNormGroups = 4;  // as in the papers: GroupNorm(4, C)
constexpr double kNormEps = 1e-5;        // PyTorch's default
constexpr size_t kHeader = 4, kBlock = 7;
constexpr int64_t kLargest = int64_t{1} << 15;  // of any size: a weight stays far below 2^63

int64_t norm_groups(Norm norm, int64_t channels) {
  switch (norm) {
    case Norm::kInstance:
      return channels;
    case Norm::kGroup:
      return kGroupNormGroups;
    case Norm::kLayer:
      return 1;
    default:
      return 0;
  }
}

bool within(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

// The seven integers of a block of so many input channels, which may be anything.
bool is_block(const int64_t* block, int64_t in_channels) {
  const bool valid = within(block[0], 1, kLargest) && within(block[1], 0, kLargest) &&
                     within(block[2], 1, kLargest) && within(block[3], 0, kLargest) &&
                     within(block[4], 0, 3) && within(block[5], 0, 3) && within(block[6], 0, 2);
  const bool plain = block[0] == in_channels && block[2] == 1 && block[3] == 0;
  return valid && (block[1] > 0 || plain) &&
         (static_cast<Norm>(block[4]) != Norm::kGroup || block[0] % kGroupNormGroups == 0);
}

bool is_of_convnet(const Block& block, const Block& first) {
  const bool padded = &block == &first ? block.padding >= 1 : block.padding == 1;
  return padded && block.kernel == 3 && block.stride == 1 && block.norm == first.norm &&
         block.shape.channels == first.shape.channels &&
         block.shape.activation == first.shape.activation &&
         block.shape.pooling == first.shape.pooling;
}

}  // namespace

Network read_network(const Check& check, const Ints& description) {
  const size_t count = description.size();
  bool valid = count >= kHeader + kBlock && (count - kHeader) % kBlock == 0;
  for (size_t i = 0; valid && i < kHeader - 1; ++i) valid = within(description[i], 1, kLargest);
  valid = valid && within(description[kHeader - 1], 0, 1);
  valid = valid && description[kHeader + 1] > 0;  // the first block has a convolution
  for (size_t i = kHeader; valid && i < count; i += kBlock) {
    valid = is_block(&description[i], description[i == kHeader ? 0 : i - kBlock]);
  }
  check.that(valid, "network", "be what engine_description() gives", text(description));
  Network network;
  network.in_channels = description[0];
  network.num_classes = description[1];
  network.image_size = description[2];
  network.precise = description[3] == 1;

  int64_t offset = 0;
  const auto slice = [&](int64_t size) {
    const Slice result{offset, size};
    offset += size;
    return result;
  };
  int64_t channels = network.in_channels, size = network.image_size;
  for (size_t i = kHeader; i < count; i += kBlock) {
    const int64_t* const numbers = &description[i];
    Block block;
    block.in_channels = channels;
    block.in_size = size;
    channels = numbers[0];
    block.kernel = numbers[1];
    block.stride = numbers[2];
    block.padding = numbers[3];
    block.norm = static_cast<Norm>(numbers[4]);
    const int64_t room = size + 2 * block.padding - block.kernel;
    check.that(room >= 0, "network", "have no kernel larger than its input", text(description));
    if (block.convolves()) size = room / block.stride + 1;
    block.shape = {0,
                   size,
                   size,
                   channels,
                   norm_groups(block.norm, channels),
                   block.norm == Norm::kLayer,
                   static_cast<Activation>(numbers[5]),
                   static_cast<Pooling>(numbers[6]),
                   kNormEps};
    block.weight = slice(channels * block.in_channels * block.kernel * block.kernel);
    block.bias = slice(block.convolves() ? channels : 0);
    if (block.norm != Norm::kNone) {
      block.norm_weight = slice(block.shape.affine_size());
      block.norm_bias = slice(block.shape.affine_size());
    }
    size = block.shape.out_height();
    check.that(size >= 1, "network", "leave at least one pixel after every pooling",
               text(description));
    network.blocks.push_back(block);
  }
  const Block &first = network.blocks.front(), &last = network.blocks.back();
  network.is_convnet = true;
  for (const Block& block : network.blocks) {
    network.is_convnet = network.is_convnet && is_of_convnet(block, first);
  }
  network.width = last.shape.channels;
  network.norm = last.norm;
  network.feature_pixels = size * size;
  network.features = network.width * network.feature_pixels;
  network.classifier_weight = slice(network.num_classes * network.features);
  network.classifier_bias = slice(network.num_classes);
  network.num_parameters = offset;
  return network;
}

}  // namespace trajmatch
