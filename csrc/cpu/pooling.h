// Pooling of one window. A window is the set of pixels that make one output pixel, in row-major
// order: one pixel without pooling, else four.
//
// No include guard: included inside the namespace of each instruction set, after cpu/pack.h.

template <Pooling pooling>
constexpr int kWindow = pooling == Pooling::kNone ? 1 : 4;

// Weight of each pixel of a window in the pooled value: 1 without pooling, 1/4 for the average. For
// the maximum, 1 for the first largest value and 0 for the others.
template <Pooling pooling, class V>
TM_INLINE void pool_shares(const V* value, V* share) {
  using L = Lanes<V>;
  if constexpr (pooling == Pooling::kNone) {
    share[0] = L::constant(1);
  } else if constexpr (pooling == Pooling::kAverage) {
    for (int k = 0; k < 4; ++k) share[k] = L::constant(0.25);
  } else {
    const V zero = L::constant(0);
    V best = value[0];
    for (int k = 1; k < 4; ++k) best = L::select(value[k] > best, value[k], best);
    V left = L::constant(1);  // 1 until the maximum is found, then 0
    for (int k = 0; k < 4; ++k) {
      share[k] = L::select(value[k] == best, left, zero);
      left = L::select(value[k] == best, zero, left);
    }
  }
}

// Pools the tangents of a window with the primal values `value`. With tangent = value the result is
// the pooled value.
template <Pooling pooling, class V>
TM_INLINE V pool_tangent(const V* value, const V* tangent) {
  if constexpr (pooling == Pooling::kNone) {
    return tangent[0];
  } else if constexpr (pooling == Pooling::kAverage) {
    return Lanes<V>::constant(0.25) * ((tangent[0] + tangent[1]) + (tangent[2] + tangent[3]));
  } else {
    V share[4];
    pool_shares<pooling>(value, share);
    V pooled = share[0] * tangent[0];
    for (int k = 1; k < 4; ++k) pooled += share[k] * tangent[k];
    return pooled;
  }
}

template <Pooling pooling, class V>
TM_INLINE V pool(const V* value) {
  return pool_tangent<pooling>(value, value);
}
