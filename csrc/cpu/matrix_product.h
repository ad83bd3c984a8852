// C (+)= A B for small matrices in cache, on packs of this instruction set.
//
// A tile of the result, kTileRows rows by two packs of columns, stays in registers over all of k:
// each step of k reads two packs of B and one value of A for each row. A's elements are found by
// two strides, so that a transposed A needs no copy.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

// As many rows as leave registers for B and A: of 32 where packs have 64 bytes, else of 16.
constexpr int kTileRows = TM_VECTOR_BYTES == 64 ? 8 : TM_VECTOR_BYTES == 32 ? 6 : 4;

template <class T>
struct Product {
  int64_t rows, columns, depth;
  const T* a;
  int64_t a_row, a_depth;  // steps of A from row to row and along the depth
  const T* b;
  int64_t b_row;  // of B [depth, columns]
  T* c;
  int64_t c_row;
  bool accumulate;  // add to C instead of setting it
};

template <int rows, int packs, class V, class T>
inline __attribute__((always_inline)) void product_tile(const Product<T>& p, int64_t row,
                                                        int64_t column) {
  constexpr int64_t lanes = sizeof(V) / sizeof(T);
  V sum[rows][packs];
  T* c = p.c + row * p.c_row + column;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < packs; ++j) {
      sum[i][j] = p.accumulate ? load<V>(c + i * p.c_row + j * lanes) : Lanes<V>::constant(0);
    }
  }
  const T* a = p.a + row * p.a_row;
  const T* b = p.b + column;
  for (int64_t k = 0; k < p.depth; ++k, a += p.a_depth, b += p.b_row) {
    V factor[packs];
    for (int j = 0; j < packs; ++j) factor[j] = load<V>(b + j * lanes);
    for (int i = 0; i < rows; ++i) {
      const V value = V{} + a[i * p.a_row];
      for (int j = 0; j < packs; ++j) sum[i][j] += value * factor[j];
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < packs; ++j) store<V>(c + i * p.c_row + j * lanes, sum[i][j]);
  }
}

// The rows that fill no tile.
template <int rows, int packs, class V, class T>
inline void product_last_rows(const Product<T>& p, int64_t row, int64_t column) {
  if constexpr (rows > 0) {
    if (p.rows - row == rows) return product_tile<rows, packs, V>(p, row, column);
    product_last_rows<rows - 1, packs, V>(p, row, column);
  }
}

template <int packs, class V, class T>
inline void product_columns(const Product<T>& p, int64_t column) {
  int64_t row = 0;
  for (; row + kTileRows <= p.rows; row += kTileRows) {
    product_tile<kTileRows, packs, V>(p, row, column);
  }
  product_last_rows<kTileRows - 1, packs, V>(p, row, column);
}

template <class T>
void product(const Product<T>& p) {
  constexpr int64_t lanes = TM_VECTOR_BYTES / sizeof(T);
  int64_t column = 0;
  for (; column + 2 * lanes <= p.columns; column += 2 * lanes) {
    product_columns<2, Pack<T>>(p, column);
  }
  for (; column + lanes <= p.columns; column += lanes) product_columns<1, Pack<T>>(p, column);
  for (; column < p.columns; ++column) product_columns<1, T>(p, column);
}
