// Matrix product C (+)= A B, or the sum of two such products. Nearly all of the engine's
// multiplications happen here.
//
// C is computed in register blocks (called tiles in this file) of kTileRows rows by two packs of
// columns. A register block stays in registers over the whole depth. Each step loads two packs of B
// and one value of A per row, and does sixteen vector multiplications with AVX-512. B is stored in
// panels of two packs of columns, [depth][kPanel], so that it is read sequentially.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

// As many rows as leave registers for B and A. There are 32 vector registers where packs have 64
// bytes, else 16.
constexpr int kTileRows = TM_VECTOR_BYTES == 64 ? 8 : TM_VECTOR_BYTES == 32 ? 6 : 4;

// Size of the L1 data cache.
constexpr int64_t kFirstCacheBytes = 32 << 10;

template <class T>
constexpr int64_t kLanes = TM_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int64_t kPanel = 2 * kLanes<T>;

// One product of a sum. Two strides (a_row and a_depth) address A's elements, so that a transposed
// A needs no copy.
template <class T>
struct Factors {
  const T* a;
  const T* b;  // [depth, columns] with row stride b_row and panel stride b_panel
};

template <class T>
struct Product {
  int64_t rows, columns, depth;  // columns: a multiple of kLanes
  int terms;                     // 1 or 2
  Factors<T> term[2];
  int64_t a_row, a_depth, b_row, b_panel;
  int64_t b_ahead;  // prefetch distance in B for the first rows of a panel; 0: none
  T* c;
  int64_t c_row;
  bool accumulate;  // add to C instead of setting it
};

// C = A B with A [rows, depth], a_row values from row to row, and B in panels. The caller sets the
// terms.
template <class T>
Product<T> product_with_panels(int64_t rows, int64_t depth, int64_t a_row, int64_t columns, T* c,
                               int64_t c_row) {
  Product<T> p{};
  p.rows = rows;
  p.columns = columns;
  p.depth = depth;
  p.a_row = a_row;
  p.a_depth = 1;
  p.b_row = kPanel<T>;
  p.b_panel = p.b_ahead = depth * kPanel<T>;
  p.c = c;
  p.c_row = c_row;
  return p;
}

// C (+)= A^T B with A [depth, rows], a_row values from row to row, and B [depth, columns]. The
// caller sets the terms.
template <class T>
Product<T> product_of_columns(int64_t rows, int64_t depth, int64_t a_row, int64_t columns, T* c,
                              bool accumulate) {
  Product<T> p{};
  p.rows = rows;
  p.columns = columns;
  p.depth = depth;
  p.a_row = 1;
  p.a_depth = a_row;
  p.b_row = columns;
  p.b_panel = kPanel<T>;
  p.c = c;
  p.c_row = columns;
  p.accumulate = accumulate;
  return p;
}

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
      // Sums over images have usually left the cache since their last use: prefetch the next rows.
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
        const V value = a[i * a_row] - V{};  // broadcast: x - 0 costs no instruction, 0 + x does
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

// The last rows, fewer than a register block has.
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
  // If the panels of both terms take more than half of the L1 cache, process one term after the
  // other and keep the partial result in C.
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
