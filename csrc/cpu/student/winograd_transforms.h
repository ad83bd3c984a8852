// Winograd transforms of F(2, 3) and F(4, 3) along one dimension (Lavin and Gray, 2016,
// arXiv:1509.09308), each with its adjoint:  y = A'((B'd) o (G g))  for a tile d of m + 2 inputs,
// three weights g and m outputs y.
//
// F(2, 3) needs 4 multiplications instead of the 6 of a direct convolution, F(4, 3) needs 6 instead
// of 12. In two dimensions these numbers are squared. The constants of F(4, 3), up to 8, cost two
// bits of accuracy.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

template <int m>
struct Winograd;

// F(2, 3): interpolation points 0, 1, -1 and infinity.
template <>
struct Winograd<2> {
  static constexpr std::array<std::array<int, 4>, 2> kOutput{{{1, 1, 1, 0}, {0, 1, -1, -1}}};  // A'
  template <class V>
  TM_INLINE static void input(const V* d, V* v) {  // B'
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  template <class V>
  TM_INLINE static void input_adjoint(const V* v, V* d) {  // B
    d[0] = v[0];
    d[1] = v[1] - v[2] + v[3];
    d[2] = v[1] + v[2] - v[0];
    d[3] = -v[3];
  }
  template <class V>
  TM_INLINE static void output(const V* p, V* y) {  // A'
    y[0] = p[0] + p[1] + p[2];
    y[1] = p[1] - p[2] - p[3];
  }
  template <class V>
  TM_INLINE static void output_adjoint(const V* y, V* p) {  // A
    p[0] = y[0];
    p[1] = y[0] + y[1];
    p[2] = y[0] - y[1];
    p[3] = -y[1];
  }
  template <class V>
  TM_INLINE static void weight(const V* g, V* u) {  // G
    const V half = Lanes<V>::constant(0.5);
    const V ends = half * (g[0] + g[2]), middle = half * g[1];
    u[0] = g[0];
    u[1] = ends + middle;
    u[2] = ends - middle;
    u[3] = g[2];
  }
  template <class V>
  TM_INLINE static void weight_adjoint(const V* u, V* g) {  // G'
    const V half = Lanes<V>::constant(0.5);
    const V sum = half * (u[1] + u[2]);
    g[0] = u[0] + sum;
    g[1] = half * (u[1] - u[2]);
    g[2] = sum + u[3];
  }
};

// F(4, 3): interpolation points 0, 1, -1, 2, -2 and infinity.
template <>
struct Winograd<4> {
  static constexpr std::array<std::array<int, 6>, 4> kOutput{
      {{1, 1, 1, 1, 1, 0}, {0, 1, -1, 2, -2, 0}, {0, 1, 1, 4, 4, 0}, {0, 1, -1, 8, -8, 1}}};  // A'
  template <class V>
  TM_INLINE static void input(const V* d, V* v) {
    const V two = Lanes<V>::constant(2), four = Lanes<V>::constant(4), five = Lanes<V>::constant(5);
    const V a = d[4] - four * d[2], b = d[3] - four * d[1];
    const V e = d[4] - d[2], f = two * (d[3] - d[1]);
    v[0] = four * d[0] - five * d[2] + d[4];
    v[1] = a + b;
    v[2] = a - b;
    v[3] = e + f;
    v[4] = e - f;
    v[5] = four * d[1] - five * d[3] + d[5];
  }
  template <class V>
  TM_INLINE static void input_adjoint(const V* v, V* d) {
    const V two = Lanes<V>::constant(2), four = Lanes<V>::constant(4), five = Lanes<V>::constant(5);
    const V sum = v[1] + v[2], difference = v[1] - v[2];
    const V outer_sum = v[3] + v[4], outer_difference = two * (v[3] - v[4]);
    d[0] = four * v[0];
    d[1] = four * (v[5] - difference) - outer_difference;
    d[2] = -five * v[0] - four * sum - outer_sum;
    d[3] = difference + outer_difference - five * v[5];
    d[4] = v[0] + sum + outer_sum;
    d[5] = v[5];
  }
  template <class V>
  TM_INLINE static void output(const V* p, V* y) {
    const V two = Lanes<V>::constant(2), four = Lanes<V>::constant(4);
    const V sum = p[1] + p[2], difference = p[1] - p[2];
    const V outer_sum = p[3] + p[4], outer_difference = two * (p[3] - p[4]);
    y[0] = p[0] + sum + outer_sum;
    y[1] = difference + outer_difference;
    y[2] = sum + four * outer_sum;
    y[3] = difference + four * outer_difference + p[5];
  }
  template <class V>
  TM_INLINE static void output_adjoint(const V* y, V* p) {
    const V two = Lanes<V>::constant(2), four = Lanes<V>::constant(4);
    const V even = y[0] + y[2], odd = y[1] + y[3];
    const V outer_even = y[0] + four * y[2], outer_odd = two * (y[1] + four * y[3]);
    p[0] = y[0];
    p[1] = even + odd;
    p[2] = even - odd;
    p[3] = outer_even + outer_odd;
    p[4] = outer_even - outer_odd;
    p[5] = y[3];
  }
  template <class V>
  TM_INLINE static void weight(const V* g, V* u) {
    const V quarter = Lanes<V>::constant(1.0 / 4), sixth = Lanes<V>::constant(1.0 / 6);
    const V half = Lanes<V>::constant(1.0 / 2);
    const V ends = -sixth * (g[0] + g[2]), middle = sixth * g[1];
    const V outer_ends = sixth * (quarter * g[0] + g[2]), outer_middle = half * middle;
    u[0] = quarter * g[0];
    u[1] = ends - middle;
    u[2] = ends + middle;
    u[3] = outer_ends + outer_middle;
    u[4] = outer_ends - outer_middle;
    u[5] = g[2];
  }
  template <class V>
  TM_INLINE static void weight_adjoint(const V* u, V* g) {
    const V quarter = Lanes<V>::constant(1.0 / 4), sixth = Lanes<V>::constant(1.0 / 6);
    const V half = Lanes<V>::constant(1.0 / 2);
    const V sum = sixth * (u[1] + u[2]), difference = sixth * (u[2] - u[1]);
    const V outer_sum = sixth * (u[3] + u[4]), outer_difference = sixth * (u[3] - u[4]);
    g[0] = quarter * (u[0] + outer_sum) - sum;
    g[1] = difference + half * outer_difference;
    g[2] = outer_sum - sum + u[5];
  }
};

// Applies a one-dimensional transform to both dimensions of a tile, in registers: to each of its
// `from` columns first, then to each of the `to` resulting rows.
template <int from, int to, class V, class Transform, class Load, class Store>
TM_INLINE void transform_tile(const Transform& transform, const Load& load_value,
                              const Store& store_value) {
  V half[to][from];
#pragma GCC unroll 6
  for (int column = 0; column < from; ++column) {
    V values[from], result[to];
#pragma GCC unroll 6
    for (int row = 0; row < from; ++row) values[row] = load_value(row, column);
    transform(values, result);
#pragma GCC unroll 6
    for (int row = 0; row < to; ++row) half[row][column] = result[row];
  }
#pragma GCC unroll 6
  for (int row = 0; row < to; ++row) {
    V result[to];
    transform(half[row], result);
#pragma GCC unroll 6
    for (int column = 0; column < to; ++column) store_value(row, column, result[column]);
  }
}
