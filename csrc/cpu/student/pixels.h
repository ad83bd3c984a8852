// The convolution of narrow input (at most kPixelLanes channels) and its gradients. So few input
// channels do not fill a pack, so these loops put the output channels in the lanes.
//
// No include guard: included inside the namespace of each instruction set, after plan.h.

// Transposed reduction of kLanes packs, called with distance = kLanes / 2: sets lane l of value[0]
// to the sum of all lanes of value[l]. Overwrites the other values. Each step adds pairs of values
// that are `distance` apart, and halves their number.
template <int distance, class T>
TM_INLINE void fold_lanes(Pack<T>* value) {
  if constexpr (distance > 0) {
    using Mask = decltype(Pack<T>{} > Pack<T>{});
    constexpr int lanes = kLanes<T>;
    Mask own, other;
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) {
      const int from = (lane & distance) != 0 ? lanes : 0;
      own[lane] = from + lane;
      other[lane] = from + (lane ^ distance);
    }
#pragma GCC unroll 8
    for (int i = 0; i < distance; ++i) {
      const Pack<T> a = value[i], b = value[i + distance];
      value[i] = __builtin_shuffle(a, b, own) + __builtin_shuffle(a, b, other);
    }
    fold_lanes<distance / 2, T>(value);
  }
}

// dV = Z U^T for one frequency of narrow input, or the sum of two such products.
template <class T>
struct PixelProduct {
  int64_t rows, width, in_channels;
  int terms;
  Factors<T> term[2];  // Z [rows, width], U [panel][in_channels][kPanel]
  T* v;                // [rows, kPixelLanes], the lanes beyond in_channels 0
};

template <int tiles, class T>
TM_INLINE void pixel_product_tiles(const PixelProduct<T>& p, int64_t row) {
  using V = Pack<T>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int values = tiles * kPixelLanes;
  V sum[values] = {};
  for (int term = 0; term < p.terms; ++term) {
    const T* z = p.term[term].a + row * p.width;
    for (int64_t c = 0; c < p.width; c += lanes) {
      const T* u = p.term[term].b + c / kPanel<T> * p.in_channels * kPanel<T> + c % kPanel<T>;
      V row_value[tiles];
#pragma GCC unroll 4
      for (int t = 0; t < tiles; ++t) row_value[t] = load<V>(z + t * p.width + c);
#pragma GCC unroll 4
      for (int i = 0; i < kPixelLanes; ++i) {
        if (i >= p.in_channels) break;
        const V factor = load<V>(u + i * kPanel<T>);
#pragma GCC unroll 4
        for (int t = 0; t < tiles; ++t) sum[t * kPixelLanes + i] += row_value[t] * factor;
      }
    }
  }
#pragma GCC unroll 4
  for (int first = 0; first < values; first += static_cast<int>(lanes)) {
    fold_lanes<static_cast<int>(lanes) / 2, T>(sum + first);
    store<V>(p.v + row * kPixelLanes + first, sum[first]);
  }
}

template <class T>
void pixel_product(const PixelProduct<T>& p) {
  // As many tiles as fill a pack with their results, kPixelLanes each.
  constexpr int tiles = std::max<int>(1, kLanes<T> / kPixelLanes);
  int64_t row = 0;
  for (; row + tiles <= p.rows; row += tiles) pixel_product_tiles<tiles>(p, row);
  if constexpr (tiles > 1) {
    // The last rows do not fill a pack with their results, so they are computed one by one.
    if (row == p.rows) return;
    PixelProduct<T> last = p;
    T results[kPixelLanes];
    for (; row < p.rows; ++row) {
      for (int i = 0; i < kPixelLanes; ++i) results[i] = T(0);
      for (int term = 0; term < p.terms; ++term) {
        const T* z = last.term[term].a + row * p.width;
        for (int64_t i = 0; i < p.in_channels; ++i) {
          Pack<T> sum{};
          for (int64_t c = 0; c < p.width; c += kLanes<T>) {
            sum += load<Pack<T>>(z + c) *
                   load<Pack<T>>(p.term[term].b + (c / kPanel<T> * p.in_channels + i) * kPanel<T> +
                                 c % kPanel<T>);
          }
          for (int64_t lane = 0; lane < kLanes<T>; ++lane) results[i] += sum[lane];
        }
      }
      std::copy_n(results, kPixelLanes, p.v + row * kPixelLanes);
    }
  }
}

// Operands of one or two summed convolutions with narrow input. Each tile stays in registers from
// its frequencies to its outputs: with so few channels, the products are too cheap to write to
// memory.
template <class T>
struct PixelTerms {
  int count;
  const T* v[2];  // [frequency][tile][kPixelLanes]
  const T* u[2];  // [frequency][panel][in_channels][kPanel]
};

// Convolves `tiles` neighbouring tiles for one pack of output channels and writes them to `to`, m
// pixels per tile. `shift` is the bias.
template <int m, int tiles, class T>
TM_INLINE void pixel_tiles(const LayerPlan<T>& plan, const PixelTerms<T>& terms, int64_t v_step,
                           int64_t tile, int64_t u_at, const Pack<T>& shift, T* to) {
  using V = Pack<T>;
  constexpr int n = m + 2;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t u_step = plan.weight_step();
  V out[tiles][m][m];
#pragma GCC unroll 4
  for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) out[t][i][j] = shift;
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < n; ++row) {
    V product[tiles][n] = {};
    for (int term = 0; term < terms.count; ++term) {
      const T* v = terms.v[term] + row * n * v_step + tile * kPixelLanes;
      const T* u = terms.u[term] + row * n * u_step + u_at;
      for (int64_t k = 0; k < plan.in_channels; ++k) {
#pragma GCC unroll 6
        for (int column = 0; column < n; ++column) {
          V factor = load<V>(u + column * u_step + k * kPanel<T>);
          if constexpr (tiles > 1) keep(factor);
#pragma GCC unroll 4
          for (int t = 0; t < tiles; ++t) {
            product[t][column] += v[column * v_step + t * kPixelLanes + k] * factor;
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < tiles; ++t) {
      // Transforms one row of frequencies as soon as it is complete. Its contribution to output row
      // i is weighted by A'[i][row].
      V half[m];
      Winograd<m>::output(product[t], half);
#pragma GCC unroll 4
      for (int i = 0; i < m; ++i) {
        constexpr auto weights = Winograd<m>::kOutput;
        if (weights[i][row] == 0) continue;
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) {
          if (weights[i][row] == 1) {
            out[t][i][j] += half[j];
          } else if (weights[i][row] == -1) {
            out[t][i][j] -= half[j];
          } else {
            out[t][i][j] += Lanes<V>::constant(weights[i][row]) * half[j];
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < tiles; ++t) {
#pragma GCC unroll 4
    for (int i = 0; i < m; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) {
        store<V>(to + (i * plan.side + t * m + j) * lanes, out[t][i][j]);
      }
    }
  }
}

// Convolves a row of `count` tiles of one image. `to` is its first pixel in the output plane.
template <int m, class T>
void convolve_pixels(const LayerPlan<T>& plan, const PixelTerms<T>& terms, int64_t v_step,
                     int64_t count, const T* bias, T* to) {
  // As many tiles at a time as leave registers for their products.
  constexpr int tiles = m == 2 ? 3 : 1;
  for (int64_t c = 0; c < plan.width; c += kLanes<T>, to += plan.side * plan.side * kLanes<T>) {
    const Pack<T> shift = load<Pack<T>>(bias + c);
    const int64_t u_at = c / kPanel<T> * plan.in_channels * kPanel<T> + c % kPanel<T>;
    int64_t tile = 0;
    for (; tile + tiles <= count; tile += tiles) {
      pixel_tiles<m, tiles>(plan, terms, v_step, tile, u_at, shift, to + tile * m * kLanes<T>);
    }
    for (; tile < count; ++tile) {
      pixel_tiles<m, 1>(plan, terms, v_step, tile, u_at, shift, to + tile * m * kLanes<T>);
    }
  }
}

// Operands of Z = A dy A' for consecutive tiles of one image, and sum (+)= V' Z. Both are computed
// together, one row of frequencies at a time, while Z is in registers.
template <class T>
struct PixelWeightGradient {
  const T* grad_y;       // the output plane
  int64_t first, count;  // consecutive tiles, at most kFirstTiles
  const T* v;            // [frequency][tile][kPixelLanes]
  int64_t v_step;
  T* z;  // [frequency][tile][width], or null if not wanted
  int64_t z_step;
  T* sum;  // [frequency][in_channels][width]
  bool accumulate;
};

template <int m, int channels, class T>
void pixel_weight_gradient(const LayerPlan<T>& plan, const PixelWeightGradient<T>& p) {
  using V = Pack<T>;
  constexpr int n = m + 2;
  constexpr int64_t lanes = kLanes<T>;
  // Number of frequencies of a row whose sums fit into registers together.
  constexpr int group = TM_VECTOR_BYTES == 64 ? n : n / 2;
  // Packs may alias everything, so local variables hold what the loops read of `p` and `plan`; the
  // compiler would reload it after each store.
  const int64_t width = plan.width, count = p.count, v_step = p.v_step, z_step = p.z_step,
                sum_step = plan.gradient_step();
  const bool accumulate = p.accumulate, keeps_z = p.z != nullptr;
  // First transforms the columns of all tiles into `half`. Then, per group of frequencies, the sums
  // stay in registers while the loop runs over the tiles.
  V half[kFirstTiles][n][m];
  for (int64_t c = 0; c < width; c += lanes) {
    const T* plane = p.grad_y + c * plan.side * plan.side;
    for_tiles<m>(plan, p.first, count, [&](int64_t, int64_t row, int64_t column, int64_t k) {
      const T* from = plane + (row * plan.side + column) * lanes;
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) {
        V dy[m], result[n];
#pragma GCC unroll 4
        for (int i = 0; i < m; ++i) dy[i] = load<V>(from + (i * plan.side + j) * lanes);
        Winograd<m>::output_adjoint(dy, result);
#pragma GCC unroll 6
        for (int i = 0; i < n; ++i) half[k][i][j] = result[i];
      }
    });
    for (int row = 0; row < n; ++row) {
#pragma GCC unroll 2
      for (int first = 0; first < n; first += group) {
        const int64_t frequency = row * n + first;
        T* const sum = p.sum + frequency * sum_step + c;
        T* const z_to = keeps_z ? p.z + frequency * z_step + c : nullptr;
        V total[group][channels];
#pragma GCC unroll 6
        for (int f = 0; f < group; ++f) {
#pragma GCC unroll 4
          for (int k = 0; k < channels; ++k) {
            total[f][k] = accumulate ? load<V>(sum + f * sum_step + k * width) : V{};
          }
        }
        const T* v = p.v + frequency * v_step;
        for (int64_t tile = 0; tile < count; ++tile, v += kPixelLanes) {
          V z[n];
          Winograd<m>::output_adjoint(half[tile][row], z);
#pragma GCC unroll 6
          for (int f = 0; f < group; ++f) {
            if (keeps_z) store<V>(z_to + f * z_step + tile * width, z[first + f]);
#pragma GCC unroll 4
            for (int k = 0; k < channels; ++k) total[f][k] += v[f * v_step + k] * z[first + f];
          }
        }
#pragma GCC unroll 6
        for (int f = 0; f < group; ++f) {
#pragma GCC unroll 4
          for (int k = 0; k < channels; ++k) {
            store<V>(sum + f * sum_step + k * width, total[f][k]);
          }
        }
      }
    }
  }
}

template <int m, class T>
void pixel_weight_gradient(const LayerPlan<T>& plan, const PixelWeightGradient<T>& p) {
  switch (plan.in_channels) {
    case 1:
      return pixel_weight_gradient<m, 1>(plan, p);
    case 2:
      return pixel_weight_gradient<m, 2>(plan, p);
    case 3:
      return pixel_weight_gradient<m, 3>(plan, p);
    default:
      return pixel_weight_gradient<m, 4>(plan, p);
  }
}
