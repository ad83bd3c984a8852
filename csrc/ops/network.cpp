#include "ops/network.h"

#include <cmath>
#include <cstring>
#include <string>

namespace trajmatch {

namespace {

constexpr size_t kHeader = 5, kNode = 8;
constexpr int64_t kLargest = int64_t{1} << 15;  // limit of every size: keeps the sizes of weights
                                                // far below 2^63

bool within(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

double as_double(int64_t bits) {
  double result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Builds a network node by node, and stops at the first invalid node.
class Reader {
 public:
  explicit Reader(const Ints& description) : description_(description) {}

  // Returns an empty string, or what the description should do but does not.
  std::string read(Network& network) {
    const size_t count = description_.size();
    if (count < kHeader + kNode || (count - kHeader) % kNode != 0) return "have whole nodes";
    const int64_t* const header = description_.data();
    for (size_t i = 0; i < 3; ++i) {
      if (!within(header[i], 1, kLargest)) return "have sizes from 1 to 2^15";
    }
    network.in_channels = header[0];
    network.num_classes = header[1];
    network.image_size = header[2];
    if (!within(header[3], 0, 1) || !within(header[4], 0, 4)) return "have valid flags";
    network.precise = header[3] == 1;
    network.fused = static_cast<FusedKernels>(header[4]);
    for (size_t i = kHeader; i < count; i += kNode) {
      const std::string wrong = read_node(network, header + i);
      if (!wrong.empty()) {
        return wrong + " (node " + std::to_string((i - kHeader) / kNode) + ")";
      }
    }
    // Nodes took their slices of the parameters in order; the classifier comes last.
    const Node& last = network.nodes.back();
    network.width = last.channels;
    network.feature_pixels = last.size * last.size;
    network.features = network.width * network.feature_pixels;
    network.classifier_weight = slice(network.num_classes * network.features);
    network.classifier_bias = slice(network.num_classes);
    network.num_parameters = offset_;
    mark_inert_biases(network);
    network.blocks = blocks_of(network);
    return "";
  }

 private:
  Slice slice(int64_t size) {
    const Slice result{offset_, size};
    offset_ += size;
    return result;
  }

  static int64_t channels_of(const Network& network, int64_t value) {
    return value == 0 ? network.in_channels : network.nodes[value - 1].channels;
  }
  static int64_t size_of(const Network& network, int64_t value) {
    return value == 0 ? network.image_size : network.nodes[value - 1].size;
  }

  std::string read_node(Network& network, const int64_t* numbers) {
    const int64_t values = static_cast<int64_t>(network.nodes.size());
    if (!within(numbers[0], 0, 3)) return "name a kind of node";
    Node node{};
    node.kind = static_cast<NodeKind>(numbers[0]);
    node.input = numbers[1];
    if (!within(node.input, 0, values)) return "read a value that is made before it";
    if (node.input == 0 && node.kind != NodeKind::kConvolution) {
      return "read the images with a convolution";
    }
    const int64_t channels = channels_of(network, node.input), size = size_of(network, node.input);
    node.channels = channels;
    node.size = size;
    std::string wrong;
    switch (node.kind) {
      case NodeKind::kConvolution:
        wrong = read_convolution(node, channels, size, numbers + 2);
        break;
      case NodeKind::kNormActPool:
        wrong = read_norm(network, node, channels, size, numbers + 2);
        break;
      case NodeKind::kAdd:
        node.other = numbers[2];
        if (!within(node.other, 1, values)) return "add values that are made before it";
        if (channels_of(network, node.other) != channels || size_of(network, node.other) != size) {
          return "add values of one shape";
        }
        break;
      case NodeKind::kMean:
        node.window = numbers[2];
        if (!within(node.window, 1, size)) return "take means within its input";
        node.size = size / node.window;
        break;
    }
    network.nodes.push_back(node);
    return wrong;
  }

  // `numbers`: channels, kernel, stride, padding, and 1 if there is a bias.
  std::string read_convolution(Node& node, int64_t channels, int64_t size, const int64_t* numbers) {
    if (!within(numbers[0], 1, kLargest) || !within(numbers[1], 1, kLargest) ||
        !within(numbers[2], 1, kLargest) || !within(numbers[3], 0, kLargest) ||
        !within(numbers[4], 0, 1)) {
      return "have sizes from 1 to 2^15";
    }
    const int64_t room = size + 2 * numbers[3] - numbers[1];
    if (room < 0) return "have no kernel larger than its input";
    ConvolutionNode& to = node.convolution;
    to = {channels, size, numbers[0], room / numbers[2] + 1, numbers[1], numbers[2], numbers[3],
          {},       {},   false};
    node.channels = to.channels;
    node.size = to.size;
    to.weight = slice(to.channels * channels * to.kernel * to.kernel);
    to.bias = slice(numbers[4] == 1 ? to.channels : 0);
    return "";
  }

  // `numbers`: groups, parameters (0: none, 1: per channel, 2: per value of an image), 1 for a
  // batch norm, eps (the bits of a float64), activation, pooling.
  std::string read_norm(Network& network, Node& node, int64_t channels, int64_t size,
                        const int64_t* numbers) {
    const int64_t groups = numbers[0];
    const double eps = as_double(numbers[3]);
    if (!within(groups, 0, channels) || (groups > 0 && channels % groups != 0)) {
      return "have groups that divide its channels";
    }
    // Without a norm there are no parameters. A batch norm has one group per channel, and at most
    // one weight and bias per channel.
    if (!within(numbers[1], 0, groups > 0 ? 2 : 0) || !within(numbers[2], 0, groups > 0 ? 1 : 0) ||
        (numbers[2] == 1 && (groups != channels || numbers[1] == 2)) || !std::isfinite(eps) ||
        eps < 0) {
      return "have a valid norm";
    }
    if (!within(numbers[4], 0, 3) || !within(numbers[5], 0, 2)) {
      return "have a valid activation and pooling";
    }
    NormActPoolNode& to = node.norm;
    to.shape = {0,
                size,
                size,
                channels,
                groups,
                numbers[1] == 2,
                static_cast<Activation>(numbers[4]),
                static_cast<Pooling>(numbers[5]),
                eps,
                numbers[2] == 1};
    if (to.shape.over_batch) network.batch_norm_channels += channels;
    node.size = to.shape.out_height();
    if (node.size < 1) return "leave at least one pixel after every pooling";
    // CUDA stacks all images of a batch norm into one image. With an odd number of rows, 2x2
    // windows would reach from one image into the next.
    if (to.shape.over_batch && to.shape.pooling != Pooling::kNone && size % 2 != 0) {
      return "pool an even number of rows where the norm is over the batch";
    }
    const int64_t parameters = numbers[1] == 0 ? 0 : to.shape.affine_size();
    to.weight = slice(parameters);
    to.bias = slice(parameters);
    return "";
  }

  // Number of nodes that read a value.
  static int64_t readers_of(const Network& network, int64_t value) {
    int64_t count = 0;
    for (const Node& node : network.nodes) {
      count += node.input == value;
      count += node.kind == NodeKind::kAdd && node.other == value;
    }
    return count;
  }

  static void mark_inert_biases(Network& network) {
    for (const Node& node : network.nodes) {
      if (node.kind != NodeKind::kNormActPool || !node.norm.centres_channels()) continue;
      if (node.norm.shape.over_batch) continue;  // its running mean depends on the bias
      // Another reader would see the bias before the norm removes it.
      if (readers_of(network, node.input) > 1) continue;
      Node& before = network.nodes[node.input - 1];
      before.convolution.bias_is_inert = before.kind == NodeKind::kConvolution;
    }
  }

  // The nodes as blocks if they form a chain as described at Network::blocks, otherwise empty.
  static std::vector<Block> blocks_of(const Network& network) {
    std::vector<Block> blocks;
    for (size_t i = 0; i + 1 < network.nodes.size(); i += 2) {
      const Node &conv = network.nodes[i], &norm = network.nodes[i + 1];
      const int64_t value = static_cast<int64_t>(i);
      const ConvolutionNode& c = conv.convolution;
      const bool fits = conv.kind == NodeKind::kConvolution && conv.input == value &&
                        norm.kind == NodeKind::kNormActPool && norm.input == value + 1 &&
                        c.kernel == 3 && c.stride == 1 && c.bias.size > 0 &&
                        (i == 0 ? c.padding >= 1 : c.padding == 1) && !norm.norm.shape.over_batch;
      if (!fits) return {};
      blocks.push_back({c, norm.norm});
    }
    return network.nodes.size() % 2 == 0 ? blocks : std::vector<Block>();
  }

  const Ints& description_;
  int64_t offset_ = 0;
};

}  // namespace

Network read_network(const Check& check, const Ints& description) {
  Network network{};
  const std::string wrong = Reader(description).read(network);
  check.that(wrong.empty(), "network", "be what engine_description() gives and " + wrong,
             text(description));
  return network;
}

}  // namespace trajmatch
