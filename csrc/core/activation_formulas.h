// The formulas of core/activation.h, for a scalar or a SIMD vector.
//
// This file has no include guard and no namespace. core/activation.h includes it for scalars. The
// CPU kernels include it again for each instruction set, because a compiler splits a SIMD vector
// that is wider than the instruction set of the function it appears in.

// The operations that a formula needs beyond arithmetic: a constant, a select and the exponential.
template <class V>
struct Lanes {
  TM_HD static V constant(double value) { return static_cast<V>(value); }
  TM_HD static V select(bool condition, V yes, V no) { return condition ? yes : no; }
  TM_HD static V exp(V value) { return std::exp(value); }
};

template <class V>
struct ActivationJet {
  V value, first, second;
};

// The value, first and second derivative. At 0 the (leaky) ReLU has its left slope, as in PyTorch.
// NaN stays NaN.
template <Activation kind, class V>
TM_HD inline ActivationJet<V> activation_jet(const V& z) {
  using L = Lanes<V>;
  const V zero = L::constant(0), one = L::constant(1);
  if constexpr (kind == Activation::kRelu) {
    return {L::select(z <= zero, zero, z), L::select(z <= zero, zero, one), zero};
  } else if constexpr (kind == Activation::kLeakyRelu) {
    const V slope = L::select(z > zero, one, L::constant(kLeakySlope));
    return {z * slope, slope, zero};
  } else if constexpr (kind == Activation::kSigmoid) {
    const V value = one / (one + L::exp(-z));
    const V first = value * (one - value);
    return {value, first, first * (one - value - value)};
  } else {
    return {z, one, zero};
  }
}
