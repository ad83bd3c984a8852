// The formulas of core/norm_act_pool.h, for a scalar or a SIMD vector.
//
// This file has no include guard and no namespace, for the reason given in
// core/activation_formulas.h.

// xh
template <class V>
TM_HD inline V normalised(const V& x, const V& mean, const V& rstd) {
  return (x - mean) * rstd;
}

// xh', from m' and q
template <class V>
TM_HD inline V normalised_tangent(const V& x_tangent, const V& mean_tangent, const V& rstd,
                                  const V& projection, const V& xh) {
  return rstd * (x_tangent - mean_tangent) - projection * xh;
}

// z'
template <class V>
TM_HD inline V affine_tangent(const V& weight, const V& weight_tangent, const V& bias_tangent,
                              const V& xh, const V& xh_tangent) {
  return weight_tangent * xh + weight * xh_tangent + bias_tangent;
}

// dx / s, from dxh, <dxh> and <dxh xh>. If all three are already multiplied by s, this is dx.
template <class V>
TM_HD inline V centred(const V& dxh, const V& mean_dxh, const V& mean_dxh_xh, const V& xh) {
  return dxh - mean_dxh - xh * mean_dxh_xh;
}

// (dx' + q dx) / s, from dxh', the means and their tangents. If dxh', <dxh'>, <dxh xh> and
// (<dxh xh>)' are already multiplied by s, this is dx' + q dx.
template <class V>
TM_HD inline V centred_tangent(const V& dxh_tangent, const V& mean_dxh_tangent,
                               const V& mean_dxh_xh, const V& mean_dxh_xh_tangent, const V& xh,
                               const V& xh_tangent) {
  return dxh_tangent - mean_dxh_tangent - xh_tangent * mean_dxh_xh - xh * mean_dxh_xh_tangent;
}

// (a b)'
template <class V>
TM_HD inline V product_tangent(const V& a, const V& a_tangent, const V& b, const V& b_tangent) {
  return a_tangent * b + a * b_tangent;
}
