// Flat parameters in the orders that the passes read, and gradients back into the flat order.
//
// A weight [C, I, 3, 3] becomes U = G g G' per frequency, in panels of two packs of columns:
// [frequency][panel][I][kPanel] with output channels as columns, or turned, [frequency][panel][C]
// [kPanel] with input channels as columns, for the gradient in the input.
//
// No include guard: included inside the namespace of each instruction set, after plan.h and
// winograd_transforms.h.

template <class T>
struct PackedLayer {
  T* primal = nullptr;  // U for the primal forward convolution, F(2x2)
  T* weight = nullptr;  // U for all others
  T* turned = nullptr;
  T *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;
};

// What of a parameter vector the passes of a call read.
struct PackedParts {
  bool primal, first_primal_only;  // the rest of the primal forward pass is on the tape
  bool weight;
  bool turned, turned_first;  // turned but of the first layer, also of it
};

template <class T>
struct Packed {
  std::pmr::vector<PackedLayer<T>> layers;
  T *classifier = nullptr, *classifier_bias = nullptr;  // [K, features], [K]
};

// The weights of a square of channels, one tap after another, in lanes along output channels or
// along input channels.
template <class T>
struct WeightSquare {
  static constexpr int64_t kSide = kLanes<T>;
  alignas(64) T taps[9][kSide][kSide];  // [tap][other channel][lane]

  // Lanes beyond `outs` or `ins` channels are 0.
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

  // U of the square's first `count` rows, row i at to + i * row_step, frequencies `step` apart.
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

// Items of work of pack_layer: squares of output and input channels, and the columns that fill up a
// last panel.
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
  const int64_t at = (out_block / 2 * plan.in_channels + in) * kPanel<T> + out_block % 2 * lanes;
  if (to.primal != nullptr) {
    square.template write<2>(ins, to.primal + at, kPanel<T>, plan.weight_step());
  }
  if (to.weight != nullptr && to.weight != to.primal) {
    if (plan.tile == 2) {
      square.template write<2>(ins, to.weight + at, kPanel<T>, plan.weight_step());
    } else {
      square.template write<4>(ins, to.weight + at, kPanel<T>, plan.weight_step());
    }
  }
  if (to.turned == nullptr) return;
  square.read(first, plan.in_channels, outs, ins, true);
  const int64_t in_block = in / lanes;
  T* turned = to.turned + (in_block / 2 * plan.channels + out) * kPanel<T> + in_block % 2 * lanes;
  if (plan.tile == 2) {
    square.template write<2>(outs, turned, kPanel<T>, plan.turned_step());
  } else {
    square.template write<4>(outs, turned, kPanel<T>, plan.turned_step());
  }
}

// One and the same sum of each part of the images, `step` apart.
template <class T>
struct PartSums {
  const T* first;
  int64_t step, count;

  const T* of(int64_t part) const { return first + part * step; }
};

// Adds up the parts' sums of V' Z, and writes their G' (.) G for one block of output channels.
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

// Between values of channels and pixels in the flat order [C, pixels] and in blocks
// [blocks][pixels] [lanes]; the channels that fill up the last block become 0.
template <class T>
void to_blocks(const T* from, int64_t channels, int64_t pixels, int64_t width, T* to) {
  for (int64_t c = 0; c < width; ++c) {
    T* lane = to + c / kLanes<T> * pixels * kLanes<T> + c % kLanes<T>;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      lane[pixel * kLanes<T>] = c < channels ? from[c * pixels + pixel] : T(0);
    }
  }
}

// Adds the parts up.
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
