// Sizes and layouts of a walk over the network, in packs of this instruction set.
//
// A plane holds one image's activations as [blocks][side][side][lanes]. A block is the channels of
// one pack; the last block is filled up with zero channels. Input planes of a convolution include
// its zero padding and have room for whole tiles. Output planes have room for whole tiles too.
//
// No include guard: included inside the namespace of each instruction set, after planes.h and
// product.h.

// Images with at most this many channels are stored as pixels of this many lanes.
constexpr int64_t kPixelLanes = 4;

// Rows that a product should have, so that reading the weights through the cache pays off.
constexpr int64_t kWantedRows = 32;
// Limit on the images that go through a layer together. Few images keep their planes in cache. A
// layer whose weight exceeds kWideWeightBytes does not stay in cache anyway, so it takes more
// images per read of its weight.
constexpr int64_t kGroupImages = 4, kGroupImagesWide = 8;
constexpr int64_t kWideWeightBytes = int64_t{1} << 18;
// If no layer has a packed weight larger than this, every part packs its own copy of the
// parameters. While a weight fits into the cache, packing it is faster than moving its cache lines
// between cores.
constexpr int64_t kOwnWeightBytes = int64_t{1} << 20;
// Limit on the tiles of the first layer that are processed at a time.
constexpr int64_t kFirstTiles = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Extra values between frequencies: one cache line. Frequencies a power of two apart would share
// cache sets.
template <class T>
constexpr int64_t kStagger = 64 / sizeof(T);

template <class T>
struct LayerPlan {
  LayerPlan() = default;
  LayerPlan(const Block& block_, int64_t index_, bool precise)
      : block(&block_),
        index(index_),
        first(index_ == 0),
        in_channels(block->convolution.in_channels),
        channels(block->convolution.channels),
        padding(block->convolution.padding),
        in_size(block->convolution.in_size),
        size(block->convolution.size),
        out_size(block->norm.shape.out_height()) {
    in_lanes = first && in_channels <= kPixelLanes ? kPixelLanes : kLanes<T>;
    in_width = ceil_div(in_channels, in_lanes) * in_lanes;
    width = ceil_div(channels, kLanes<T>) * kLanes<T>;
    panels = ceil_div(width, kPanel<T>);
    in_panels = ceil_div(in_width, kPanel<T>);
    // An image of 2 x 2 pixels is one tile of either; F(2, 3) multiplies 16 values for it, not 36.
    tile = precise || size <= 2 ? 2 : 4;
    side = tile * tiles_side(tile);
    in_side = side + 2;
    images = first ? 1
                   : std::clamp<int64_t>(
                         kWantedRows / tiles(4), 1,
                         weight_bytes() > kWideWeightBytes ? kGroupImagesWide : kGroupImages);
  }

  // Bytes of one packed weight.
  int64_t weight_bytes() const { return frequencies(tile) * weight_step() * int64_t{sizeof(T)}; }
  bool narrow_input() const { return in_lanes != kLanes<T>; }
  int64_t tiles_side(int m) const { return ceil_div(size, m); }
  int64_t tiles(int m) const { return tiles_side(m) * tiles_side(m); }
  // Tiles processed at a time (a slab), for `count` images.
  int64_t slab(int m, int64_t count) const {
    return first ? std::min(tiles(m), kFirstTiles) : count * tiles(m);
  }
  static int64_t frequencies(int m) { return (m + 2) * (m + 2); }
  // Distance between frequencies, each a matrix of `rows` rows of `row_width` values.
  static int64_t step(int64_t rows, int64_t row_width) { return rows * row_width + kStagger<T>; }
  int64_t weight_step() const { return panels * kPanel<T> * in_channels + kStagger<T>; }
  int64_t turned_step() const { return in_panels * kPanel<T> * channels + kStagger<T>; }
  int64_t gradient_step() const { return in_channels * width + kStagger<T>; }

  int64_t in_plane() const { return in_side * in_side * in_width; }
  int64_t plane() const { return side * side * width; }
  // Copies images to input planes and back.
  PlaneCopy<T> input_copy() const {
    return {in_channels, in_size,
            in_size,     in_lanes,
            in_side,     in_side * in_side * in_lanes,
            in_plane(),  padding * (in_side + 1)};
  }
  // Number of values in the weight, or the bias, of the norm.
  int64_t affine() const { return block->norm.shape.elementwise ? size * size * width : width; }

  const Block* block = nullptr;
  int64_t index = 0;
  bool first = false;
  int64_t in_channels = 0, channels = 0, padding = 0;
  int64_t in_size = 0, size = 0, out_size = 0;  // sides: input, convolution output, pooled output
  int64_t in_lanes = 0, in_width = 0, width = 0, panels = 0, in_panels = 0;
  int tile = 4;  // m of F(m, 3); the primal forward pass always uses 2
  int64_t side = 0, in_side = 0;
  int64_t images = 1;  // that go through the layer together (a run)
};

template <class T>
struct WalkPlan {
  explicit WalkPlan(const Network& network,
                    std::pmr::memory_resource* lists = std::pmr::get_default_resource())
      : network(&network), layers(lists) {
    layers.reserve(network.blocks.size());
    for (const Block& block : network.blocks) {
      layers.emplace_back(block, static_cast<int64_t>(layers.size()), network.precise);
    }
    const LayerPlan<T>& last = layers.back();
    features = last.out_size * last.out_size * last.width;
    for (const LayerPlan<T>& layer : layers) {
      group = std::max(group, layer.images);
      own_parameters = own_parameters && layer.weight_bytes() <= kOwnWeightBytes;
    }
  }
  // Destination of a layer's output: the interior of the next layer's input plane, or the features,
  // which have no padding.
  int64_t out_side(size_t layer) const {
    return layer + 1 < layers.size() ? layers[layer + 1].in_side : layers[layer].out_size;
  }
  int64_t out_origin(size_t layer) const {
    return layer + 1 < layers.size() ? (layers[layer + 1].in_side + 1) * kLanes<T> : 0;
  }
  int64_t out_plane(size_t layer) const {
    return layer + 1 < layers.size() ? layers[layer + 1].in_plane() : features;
  }

  const Network* network;
  std::pmr::vector<LayerPlan<T>> layers;
  int64_t features = 0;        // per image, zero channels of the last block included
  int64_t group = 1;           // images that go through the network together
  bool own_parameters = true;  // each part packs its own copy of the parameters
};
