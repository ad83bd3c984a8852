// Copies parameters from the flat order into the layouts that the passes read, and gradients back.
//
// A weight [C, I, 3, 3] becomes U = G g G' per frequency, in panels of two packs of columns. It is
// stored as [frequency][panel][I][kPanel] with output channels as columns. The turned weight, for
// the gradient in the input, is [frequency][panel][C][kPanel] with input channels as columns.
//
// No include guard: included inside the namespace of each instruction set, after plan.h and
// winograd_transforms.h.

// The parameters of one layer in the layouts that the passes read; null where the call does not
// need them. Where `tile` is 2, `weight` is the same memory as `primal`, if there is a primal one.
template <class T>
struct PackedLayer {
  T* primal = nullptr;  // U of the primal forward pass, F(2, 3)
  T* weight = nullptr;  // U of the tangent forward pass, and of the gradient in narrow input
  T* turned = nullptr;  // turned U of the input gradient, unless the input is narrow
  T *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;
};

// Selects the layouts of a parameter vector that the passes of a call read.
struct PackedParts {
  bool primal, first_primal_only;  // first_primal_only: the tape has the other layers
  bool weight;
  bool turned, turned_first;  // all layers but the first; the first layer
};

template <class T>
struct Packed {
  std::pmr::vector<PackedLayer<T>> layers;
  T *classifier = nullptr, *classifier_bias = nullptr;  // [K, features], [K]
};

// The weights of kLanes output channels by kLanes input channels, one tap (of the 3 x 3) after
// another. The lanes are output channels or, if turned, input channels.
template <class T>
struct WeightSquare {
  static constexpr int64_t kSide = kLanes<T>;
  alignas(64) T taps[9][kSide][kSide];  // [tap][other channel][lane]

  // Lanes and rows beyond `outs` output or `ins` input channels are 0.
  void read(const T* weight, int64_t in_channels, int64_t outs, int64_t ins, bool turned) {
    if (outs < kSide || ins < kSide) std::memset(taps, 0, sizeof taps);
    T* first = &taps[0][0][0];
    const int64_t out_step = turned ? kSide : 1, in_step = turned ? 1 : kSide;
    for (int64_t out = 0; out < outs; ++out) {
      const T* g = weight + out * in_channels * 9;
      T* to = first + out * out_step;
      for (int64_t in = 0; in < ins; ++in, g += 9, to += in_step) {
#pragma GCC unroll 9
        for (int k = 0; k < 9; ++k) to[k * kSide * kSide] = g[k];
      }
    }
  }

  // Writes U of the square's first `count` rows: row i at to + i * row_step, with frequencies
  // `step` apart.
  void write(int tile, int64_t count, T* to, int64_t row_step, int64_t step) const {
    if (tile == 2) return write<2>(count, to, row_step, step);
    write<4>(count, to, row_step, step);
  }

  template <int m>
  void write(int64_t count, T* to, int64_t row_step, int64_t step) const {
    using V = Pack<T>;
    for (int64_t i = 0; i < count; ++i, to += row_step) {
      transform_tile<3, m + 2, V>(
          [](const V* g, V* u) { Winograd<m>::weight(g, u); },
          [&](int r, int c) { return load<V>(taps[3 * r + c][i]); },
          [&](int r, int c, const V& u) { store<V>(to + (r * (m + 2) + c) * step, u); });
    }
  }
};

// Number of work items of pack_layer: one per square of output and input channels. They include the
// zero columns that fill up the last panel.
template <class T>
int64_t pack_items(const LayerPlan<T>& plan) {
  return plan.panels * 2 * ceil_div(plan.in_channels, kLanes<T>);
}

template <class T>
void pack_layer(const LayerPlan<T>& plan, const T* weight, const PackedLayer<T>& to, int64_t item) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t squares = ceil_div(plan.in_channels, lanes);
  const int64_t out_block = item / squares, in = item % squares * lanes, out = out_block * lanes;
  const int64_t outs = std::clamp<int64_t>(plan.channels - out, 0, lanes);
  const int64_t ins = std::min(lanes, plan.in_channels - in);
  const T* first = weight + (out * plan.in_channels + in) * 9;
  WeightSquare<T> square;
  square.read(first, plan.in_channels, outs, ins, false);
  // A panel holds two blocks of output channels.
  const int64_t at = (out_block / 2 * plan.in_channels + in) * kPanel<T> + out_block % 2 * lanes;
  if (to.primal != nullptr) {
    square.write(2, ins, to.primal + at, kPanel<T>, plan.weight_step());
  }
  if (to.weight != nullptr && to.weight != to.primal) {
    square.write(plan.tile, ins, to.weight + at, kPanel<T>, plan.weight_step());
  }
  if (to.turned == nullptr) return;
  square.read(first, plan.in_channels, outs, ins, true);
  const int64_t in_block = in / lanes;
  T* turned = to.turned + (in_block / 2 * plan.channels + out) * kPanel<T> + in_block % 2 * lanes;
  square.write(plan.tile, outs, turned, kPanel<T>, plan.turned_step());
}

// The same sum in each part's buffers, `step` values apart.
template <class T>
struct PartSums {
  const T* first;
  int64_t step, count;

  const T* of(int64_t part) const { return first + part * step; }
};

// Adds up the parts' sums of V' Z and writes G' (.) G, the weight gradient, for one block of output
// channels.
template <int m, class T>
void unpack_block(const LayerPlan<T>& plan, const PartSums<T>& parts, T* grad_weight,
                  int64_t block) {
  using V = Pack<T>;
  constexpr int n = m + 2;
  const int64_t out = block * kLanes<T>, outs = std::min(kLanes<T>, plan.channels - out);
  for (int64_t in = 0; in < plan.in_channels; ++in) {
    alignas(64) T taps[9][kLanes<T>];
    transform_tile<n, 3, V>([](const V* u, V* g) { Winograd<m>::weight_adjoint(u, g); },
                            [&](int r, int c) {
                              const int64_t at =
                                  (r * n + c) * plan.gradient_step() + in * plan.width + out;
                              V sum = load<V>(parts.first + at);
                              for (int64_t part = 1; part < parts.count; ++part)
                                sum += load<V>(parts.of(part) + at);
                              return sum;
                            },
                            [&](int r, int c, const V& g) { store<V>(taps[3 * r + c], g); });
    for (int64_t lane = 0; lane < outs; ++lane) {
      T* g = grad_weight + ((out + lane) * plan.in_channels + in) * 9;
      for (int k = 0; k < 9; ++k) g[k] = taps[k][lane];
    }
  }
}

// The same by the layer's tile.
template <class T>
void unpack_block(const LayerPlan<T>& plan, const PartSums<T>& parts, T* grad_weight,
                  int64_t block) {
  if (plan.tile == 2) return unpack_block<2>(plan, parts, grad_weight, block);
  unpack_block<4>(plan, parts, grad_weight, block);
}

// Copies values per channel and pixel from the flat order [C, pixels] to blocks
// [blocks][pixels][lanes]. Channels that fill up the last block become 0.
template <class T>
void to_blocks(const T* from, int64_t channels, int64_t pixels, int64_t width, T* to) {
  for (int64_t c = 0; c < width; ++c) {
    T* lane = to + c / kLanes<T> * pixels * kLanes<T> + c % kLanes<T>;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      lane[pixel * kLanes<T>] = c < channels ? from[c * pixels + pixel] : T(0);
    }
  }
}

// The inverse of to_blocks, for the total of all parts' sums.
template <class T>
void from_blocks(const PartSums<T>& parts, int64_t channels, int64_t pixels, T* to) {
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t lane = c / kLanes<T> * pixels * kLanes<T> + c % kLanes<T>;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      T sum = T(0);
      for (int64_t part = 0; part < parts.count; ++part) {
        sum += parts.of(part)[lane + pixel * kLanes<T>];
      }
      to[c * pixels + pixel] = sum;
    }
  }
}
