// The classifier on the features of a few images: logits, and the gradients in features and weight.
//
// No include guard: included inside the namespace of each instruction set, after product.h.

// out[i, k] += <features[i], weight[k]> for `images` rows of features, `size` values each.
template <int images, class T>
TM_INLINE void logits_of(const T* features, int64_t size, const T* weight, int64_t classes,
                         T* out) {
  using V = Pack<T>;
  for (int64_t k = 0; k < classes; ++k, weight += size) {
    V sum[images] = {};
    for (int64_t c = 0; c < size; c += kLanes<T>) {
      const V w = load<V>(weight + c);
#pragma GCC unroll 4
      for (int i = 0; i < images; ++i) sum[i] += w * load<V>(features + i * size + c);
    }
    for (int i = 0; i < images; ++i) {
      T total = T(0);
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) total += sum[i][lane];
      out[i * classes + k] += total;
    }
  }
}

template <class T>
void add_logits(int64_t count, const T* features, int64_t size, const T* weight, int64_t classes,
                T* out) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    logits_of<4>(features + i * size, size, weight, classes, out + i * classes);
  for (; i < count; ++i)
    logits_of<1>(features + i * size, size, weight, classes, out + i * classes);
}

template <class T>
void set_rows(int64_t count, int64_t classes, const T* bias, T* out) {
  for (int64_t i = 0; i < count; ++i) std::copy_n(bias, classes, out + i * classes);
}

// grad_features [count, size] = the sum over the terms of grad_logits [count, K] weight [K, size].
template <class T>
void features_gradient(int64_t count, int64_t size, int64_t classes, int terms,
                       const Factors<T> (&term)[2], T* grad_features) {
  Product<T> p{};
  p.rows = count;
  p.columns = p.b_row = p.c_row = size;
  p.depth = p.a_row = classes;
  p.a_depth = 1;
  p.b_panel = kPanel<T>;
  p.c = grad_features;
  p.terms = terms;
  for (int i = 0; i < terms; ++i) p.term[i] = term[i];
  product(p);
}

// grad_weight [K, size] (+)= the sum over the terms of grad_logits [count, K]^T features [count,
// size].
template <class T>
void classifier_gradient(int64_t count, int64_t size, int64_t classes, int terms,
                         const Factors<T> (&term)[2], T* grad_weight, bool accumulate) {
  Product<T> p = product_of_columns(classes, count, classes, size, grad_weight, accumulate);
  p.terms = terms;
  for (int i = 0; i < terms; ++i) p.term[i] = term[i];
  product(p);
}
