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
  bool turned_first;  // turned also of the first layer
};

template <class T>
struct Packed {
  std::vector<PackedLayer<T>> layers;
  T *classifier = nullptr, *classifier_bias = nullptr;  // [K, features], [K]
};

// U of a block of weights, lanes along output channels (`turned`: along input channels), written to
// to(frequency, other channel).
template <int m, bool turned, class T, class At>
TM_INLINE void pack_block(const T* weight, int64_t in_channels, int64_t out, int64_t outs, int64_t in,
                          int64_t ins, const At& at) {
  using V = Pack<T>;
  constexpr int n = m + 2;
  const int64_t across = turned ? outs : ins, lanes = turned ? ins : outs;
  for (int64_t i = 0; i < across; ++i) {
    alignas(64) T taps[9][kLanes<T>] = {};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const T* g = weight + ((out + (turned ? i : lane)) * in_channels + in + (turned ? lane : i)) * 9;
      for (int k = 0; k < 9; ++k) taps[k][lane] = g[k];
    }
    transform_tile<3, n, V>([](const V* g, V* u) { Winograd<m>::weight(g, u); },
                            [&](int r, int c) { return load<V>(taps[3 * r + c]); },
                            [&](int r, int c, const V& u) { store<V>(at(r * n + c, i), u); });
  }
}

// Items of work of pack_layer: blocks of output channels.
template <class T>
int64_t pack_items(const LayerPlan<T>& plan) {
  return plan.panels * 2;
}

// Packs the weight as `parts` says, for one block of output channels.
template <class T>
void pack_layer(const LayerPlan<T>& plan, const T* weight, const PackedLayer<T>& to, int64_t item) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t in_channels = plan.in_channels, out = item * lanes;
  const int64_t outs = std::clamp<int64_t>(plan.channels - out, 0, lanes);
  const auto columns = [&](T* u) {
    T* first = u + item / 2 * in_channels * kPanel<T> + item % 2 * lanes;
    return [=](int64_t in) {
      return [=](int frequency, int64_t i) {
        return first + frequency * plan.weight_step() + (in + i) * kPanel<T>;
      };
    };
  };
  for (int64_t in = 0; in < in_channels; in += lanes) {
    const int64_t ins = std::min(lanes, in_channels - in);
    if (to.primal != nullptr) {
      pack_block<2, false>(weight, in_channels, out, outs, in, ins, columns(to.primal)(in));
    }
    if (to.weight != nullptr && to.weight != to.primal) {
      const auto at = columns(to.weight)(in);
      if (plan.tile == 2) {
        pack_block<2, false>(weight, in_channels, out, outs, in, ins, at);
      } else {
        pack_block<4, false>(weight, in_channels, out, outs, in, ins, at);
      }
    }
    if (to.turned != nullptr) {
      T* first = to.turned + in / kPanel<T> * plan.channels * kPanel<T> + in % kPanel<T>;
      const auto at = [&](int frequency, int64_t i) {
        return first + frequency * plan.turned_step() + (out + i) * kPanel<T>;
      };
      if (plan.tile == 2) {
        pack_block<2, true>(weight, in_channels, out, outs, in, ins, at);
      } else {
        pack_block<4, true>(weight, in_channels, out, outs, in, ins, at);
      }
    }
  }
}

// Adds up the parts' sums of V' Z, and writes their G' (.) G for one block of output channels.
template <int m, class T>
void unpack_block(const LayerPlan<T>& plan, const std::vector<const T*>& parts, T* grad_weight,
                  int64_t block) {
  using V = Pack<T>;
  constexpr int n = m + 2;
  const int64_t out = block * kLanes<T>, outs = std::min(kLanes<T>, plan.channels - out);
  for (int64_t in = 0; in < plan.in_channels; ++in) {
    alignas(64) T taps[9][kLanes<T>];
    transform_tile<n, 3, V>(
        [](const V* u, V* g) { Winograd<m>::weight_adjoint(u, g); },
        [&](int r, int c) {
          const int64_t at = (r * n + c) * plan.gradient_step() + in * plan.width + out;
          V sum = load<V>(parts[0] + at);
          for (size_t part = 1; part < parts.size(); ++part) sum += load<V>(parts[part] + at);
          return sum;
        },
        [&](int r, int c, const V& g) { store<V>(taps[3 * r + c], g); });
    for (int64_t lane = 0; lane < outs; ++lane) {
      T* g = grad_weight + ((out + lane) * plan.in_channels + in) * 9;
      for (int k = 0; k < 9; ++k) g[k] = taps[k][lane];
    }
  }
}

// Between values of channels and pixels in the flat order [C, pixels] and in blocks [blocks][pixels]
// [lanes]; the channels that fill up the last block become 0.
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
void from_blocks(const std::vector<const T*>& parts, int64_t channels, int64_t pixels, T* to) {
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t lane = c / kLanes<T> * pixels * kLanes<T> + c % kLanes<T>;
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      T sum = T(0);
      for (const T* part : parts) sum += part[lane + pixel * kLanes<T>];
      to[c * pixels + pixel] = sum;
    }
  }
}
