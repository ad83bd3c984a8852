// Winograd transforms between planes and frequencies, for a run of consecutive tiles.
//
// Each frequency is a matrix [tiles, channels]; frequencies are `step` values apart. A run of tiles
// continues from one image into the next. With `side` tiles in a row, tile t of an image starts at
// row m (t / side), column m (t % side) of its output plane.
//
// No include guard: included inside the namespace of each instruction set, after plan.h and
// winograd_transforms.h.

// Calls body(image, row, column, k) for the k-th of the tiles [first, first + count). `row` and
// `column` are the first pixel of the tile.
template <int m, class T, class Body>
TM_INLINE void for_tiles(const LayerPlan<T>& plan, int64_t first, int64_t count, const Body& body) {
  const int64_t side = plan.tiles_side(m), tiles = side * side;
  int64_t image = first / tiles, row = first % tiles / side, column = first % side;
  for (int64_t k = 0; k < count; ++k) {
    body(image, m * row, m * column, k);
    if (++column < side) continue;
    column = 0;
    if (++row < side) continue;
    row = 0;
    ++image;
  }
}

template <int m, class V, class T, class Load>
TM_INLINE void transform_input(const Load& load_value, T* to, int64_t step) {
  constexpr int n = m + 2;
  transform_tile<n, n, V>(
      [](const V* d, V* out) { Winograd<m>::input(d, out); }, load_value,
      [&](int i, int j, const V& value) { store<V>(to + (i * n + j) * step, value); });
}

// V = B' d B, from tiles d of input planes.
template <int m, class T>
void read_input(const LayerPlan<T>& plan, const T* planes, int64_t first, int64_t count, T* v,
                int64_t step) {
  using V = Pack<T>;
  constexpr int64_t lanes = kLanes<T>;
  const int64_t side = plan.in_side, width = plan.in_width;
  for_tiles<m>(plan, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t k) {
    const T* from = planes + image * plan.in_plane() + (row * side + column) * lanes;
    T* to = v + k * width;
    for (int64_t c = 0; c < width; c += lanes, from += side * side * lanes, to += lanes) {
      transform_input<m, V>([&](int i, int j) { return load<V>(from + (i * side + j) * lanes); },
                            to, step);
    }
  });
}

// The same for narrow input planes [side][side][kPixelLanes]. A pixel fills only four lanes, so a
// pack takes the same pixel of kPixels neighbouring tiles of a row.
template <int m, class T>
void read_pixels(const LayerPlan<T>& plan, const T* planes, int64_t first, int64_t count, T* v,
                 int64_t step) {
  const int64_t side = plan.in_side, across = plan.tiles_side(m), tiles = plan.tiles(m);
  for (int64_t k = 0; k < count;) {
    const int64_t tile = first + k, row = tile % tiles / across, column = tile % across;
    const T* from =
        planes + tile / tiles * plan.in_plane() + m * (row * side + column) * kPixelLanes;
    const int64_t end = k + std::min(across - column, count - k);
    for (; k + kPixels<T> <= end; k += kPixels<T>, from += m * kPixels<T> * kPixelLanes) {
      transform_input<m, PixelRow<T>>(
          [&](int i, int j) {
            return load_pixels<T>(from + (i * side + j) * kPixelLanes, m * kPixelLanes);
          },
          v + k * kPixelLanes, step);
    }
    for (; k < end; ++k, from += m * kPixelLanes) {
      transform_input<m, Pixel<T>>(
          [&](int i, int j) { return load<Pixel<T>>(from + (i * side + j) * kPixelLanes); },
          v + k * kPixelLanes, step);
    }
  }
}

// y = A' M A, plus a bias per channel, written to output planes.
template <int m, class T>
void write_output(const LayerPlan<T>& plan, const T* products, int64_t step, const T* bias,
                  int64_t first, int64_t count, T* planes) {
  using V = Pack<T>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int n = m + 2;
  const int64_t side = plan.side, width = plan.width;
  for_tiles<m>(plan, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t k) {
    const T* from = products + k * width;
    T* to = planes + image * plan.plane() + (row * side + column) * lanes;
    for (int64_t c = 0; c < width; c += lanes, from += lanes, to += side * side * lanes) {
      const V shift = load<V>(bias + c);
      transform_tile<n, m, V>([](const V* p, V* out) { Winograd<m>::output(p, out); },
                              [&](int i, int j) { return load<V>(from + (i * n + j) * step); },
                              [&](int i, int j, const V& value) {
                                store<V>(to + (i * side + j) * lanes, value + shift);
                              });
    }
  });
}

// Z = A dy A', from gradients dy in output planes.
template <int m, class T>
void read_gradient(const LayerPlan<T>& plan, const T* planes, int64_t first, int64_t count, T* z,
                   int64_t step) {
  using V = Pack<T>;
  constexpr int64_t lanes = kLanes<T>;
  constexpr int n = m + 2;
  const int64_t side = plan.side, width = plan.width;
  for_tiles<m>(plan, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t k) {
    const T* from = planes + image * plan.plane() + (row * side + column) * lanes;
    T* to = z + k * width;
    for (int64_t c = 0; c < width; c += lanes, from += side * side * lanes, to += lanes) {
      transform_tile<m, n, V>(
          [](const V* dy, V* out) { Winograd<m>::output_adjoint(dy, out); },
          [&](int i, int j) { return load<V>(from + (i * side + j) * lanes); },
          [&](int i, int j, const V& value) { store<V>(to + (i * n + j) * step, value); });
    }
  });
}

// Adds dx = B dV B' to gradients in input planes. Adds, because neighbouring tiles overlap there.
template <int m, class V, class T>
void add_input_gradient(const LayerPlan<T>& plan, const T* products, int64_t step, int64_t first,
                        int64_t count, T* planes) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  constexpr int n = m + 2;
  const int64_t side = plan.in_side, width = plan.in_width;
  for_tiles<m>(plan, first, count, [&](int64_t image, int64_t row, int64_t column, int64_t k) {
    const T* from = products + k * width;
    T* to = planes + image * plan.in_plane() + (row * side + column) * lanes;
    for (int64_t c = 0; c < width; c += lanes, from += lanes, to += side * side * lanes) {
      transform_tile<n, n, V>(
          [](const V* v, V* out) { Winograd<m>::input_adjoint(v, out); },
          [&](int i, int j) { return load<V>(from + (i * n + j) * step); },
          [&](int i, int j, const V& value) { add_to<V>(to + (i * side + j) * lanes, value); });
    }
  });
}
