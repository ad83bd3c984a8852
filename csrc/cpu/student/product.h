// C (+)= A B, or the sum of two such products: the only place where the engine multiplies much.
//
// A tile of C, kTileRows rows by two packs of columns, stays in registers over all of the depth:
// each step reads two packs of B and one value of A for each row, and multiplies sixteen times
// (AVX-512). B is read in panels of two packs, [depth][kPanel], so that it streams.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

// As many rows as leave registers for B and A: of 32 where packs have 64 bytes, else of 16.
constexpr int kTileRows = TM_VECTOR_BYTES == 64 ? 8 : TM_VECTOR_BYTES == 32 ? 6 : 4;

constexpr int64_t kFirstCacheBytes = 32 << 10;

template <class T>
constexpr int64_t kLanes = TM_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;

// One product of a sum. A's elements are found by two strides, so that its transpose needs no copy.
template <class T>
struct Factors {
  const T* a;
  const T* b;  // [depth, columns] by b_row; from panel to panel by b_panel
};

template <class T>
struct Product {
  int64_t rows, columns, depth;  // columns: a multiple of kLanes
  int terms;                     // 1 or 2
  Factors<T> term[2];
  int64_t a_row, a_depth, b_row, b_panel;
  int64_t b_ahead;  // the first rows of a panel fetch this far ahead into the cache; 0: nothing
  T* c;
  int64_t c_row;
  bool accumulate;  // add to C instead of setting it
};

template <int rows, int packs, bool prefetch, class T>
TM_INLINE void product_tile(const Product<T>& p, int64_t row, int64_t panel) {
  using V = Pack<T>;
  V sum[rows][packs];
  T* c = p.c + row * p.c_row + panel * kPanel<T>;
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < packs; ++j) {
      sum[i][j] = p.accumulate ? load<V>(c + i * p.c_row + j * kLanes<T>) : V{};
      // Sums over images lie far away by the time their turn comes again.
      if (p.accumulate) __builtin_prefetch(c + (rows + i) * p.c_row + j * kLanes<T>, 1, 3);
    }
  }
  const int64_t a_row = p.a_row, a_depth = p.a_depth, b_row = p.b_row, depth = p.depth;
  for (int term = 0; term < p.terms; ++term) {
    const T* a = p.term[term].a + row * a_row;
    const T* b = p.term[term].b + panel * p.b_panel;
    for (int64_t k = 0; k < depth; ++k, a += a_depth, b += b_row) {
      if constexpr (prefetch) __builtin_prefetch(b + p.b_ahead, 0, 2);
      V factor[packs];
#pragma GCC unroll 2
      for (int j = 0; j < packs; ++j) factor[j] = load<V>(b + j * kLanes<T>);
#pragma GCC unroll 8
      for (int i = 0; i < rows; ++i) {
        const V value = a[i * a_row] - V{};  // x - 0 is x, and no instruction; 0 + x is one
#pragma GCC unroll 2
        for (int j = 0; j < packs; ++j) sum[i][j] += value * factor[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < packs; ++j) store<V>(c + i * p.c_row + j * kLanes<T>, sum[i][j]);
  }
}

// The rows that fill no tile.
template <int rows, int packs, class T>
inline void product_last_rows(const Product<T>& p, int64_t row, int64_t panel) {
  if constexpr (rows > 0) {
    if (p.rows - row == rows) return product_tile<rows, packs, false>(p, row, panel);
    product_last_rows<rows - 1, packs>(p, row, panel);
  }
}

template <int packs, class T>
inline void product_panel(const Product<T>& p, int64_t panel) {
  int64_t row = 0;
  if (p.b_ahead > 0 && kTileRows <= p.rows) {
    product_tile<kTileRows, packs, true>(p, row, panel);
    row += kTileRows;
  }
  for (; row + kTileRows <= p.rows; row += kTileRows) {
    product_tile<kTileRows, packs, false>(p, row, panel);
  }
  product_last_rows<kTileRows - 1, packs>(p, row, panel);
}

template <class T>
void product_of(const Product<T>& p, int64_t panel) {
  if ((panel + 1) * kPanel<T> <= p.columns) {
    product_panel<2>(p, panel);
  } else {
    product_panel<1>(p, panel);
  }
}

template <class T>
void product(const Product<T>& p) {
  // Two panels that do not fit into the first level's cache together are gone through one after the
  // other, with C in between.
  const bool apart = p.terms == 2 && p.rows > kTileRows &&
                     2 * p.depth * kPanel<T> * int64_t{sizeof(T)} > kFirstCacheBytes / 2;
  for (int64_t panel = 0; panel * kPanel<T> < p.columns; ++panel) {
    if (!apart) {
      product_of(p, panel);
      continue;
    }
    Product<T> one = p;
    one.terms = 1;
    product_of(one, panel);
    one.term[0] = p.term[1];
    one.accumulate = true;
    product_of(one, panel);
  }
}
