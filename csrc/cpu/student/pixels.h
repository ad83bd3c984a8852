// Images and their gradients: between [S, S, I] and the first layer's input planes, and the gradient
// in images of so few channels that lanes are better spent on the channels of the layer's output.
//
// No include guard: included inside the namespace of each instruction set, after plan.h.

// Calls body(pixel, at) with the place of each pixel in the image and of its first channel in a
// block of the input plane.
template <class T, class Body>
TM_INLINE void for_image_pixels(const LayerPlan<T>& plan, const Body& body) {
  for (int64_t row = 0; row < plan.in_size; ++row) {
    for (int64_t column = 0; column < plan.in_size; ++column) {
      body((row * plan.in_size + column) * plan.in_channels,
           ((row + plan.padding) * plan.in_side + column + plan.padding) * plan.in_lanes);
    }
  }
}

// Writes the image's pixels; the padding around them stays.
template <class T>
void read_image(const LayerPlan<T>& plan, const T* image, T* plane) {
  const int64_t block = plan.in_side * plan.in_side * plan.in_lanes, lanes = plan.in_lanes;
  for_image_pixels(plan, [&](int64_t pixel, int64_t at) {
    for (int64_t c = 0; c < plan.in_channels; ++c) {
      plane[c / lanes * block + at + c % lanes] = image[pixel + c];
    }
  });
}

template <class T>
void write_image_gradient(const LayerPlan<T>& plan, const T* plane, T* image) {
  const int64_t block = plan.in_side * plan.in_side * plan.in_lanes, lanes = plan.in_lanes;
  for_image_pixels(plan, [&](int64_t pixel, int64_t at) {
    for (int64_t c = 0; c < plan.in_channels; ++c) {
      image[pixel + c] = plane[c / lanes * block + at + c % lanes];
    }
  });
}

// Lane l of the result: the sum of all lanes of value[l], for as many values as lanes.
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

// dV = Z U^T (a sum of one or two such) of one frequency, for in_channels <= kPixelLanes: rows of
// kPixelLanes values.
template <class T>
struct PixelProduct {
  int64_t rows, width, in_channels;
  int terms;
  Factors<T> term[2];  // Z [rows, width], U [panel][in_channels][kPanel]
  T* v;                // [rows, kPixelLanes]
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
  // As many tiles as fill a pack with their results.
  constexpr int tiles = std::max<int>(1, kLanes<T> / kPixelLanes);
  int64_t row = 0;
  for (; row + tiles <= p.rows; row += tiles) pixel_product_tiles<tiles>(p, row);
  if constexpr (tiles > 1) {
    // The results of a last, shorter run go through a pack of their own.
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
