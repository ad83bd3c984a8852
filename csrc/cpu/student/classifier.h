// The classifier on the features of a few images: logits, and the gradients below.
//
// No include guard: included inside the namespace of each instruction set, after product.h.

// out[i, k] += <features[i], weight[k]> for `images` rows of features.
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

// grad_features [count, size] = sum of grad_logits [count, K] weight [K, size] over the terms.
template <class T>
void features_gradient(int64_t count, int64_t size, int64_t classes, int terms,
                       const Factors<T> (&term)[2], T* grad_features) {
  product(Product<T>{count,
                     size,
                     classes,
                     terms,
                     {term[0], term[1]},
                     classes,
                     1,
                     size,
                     kPanel<T>,
                     0,
                     grad_features,
                     size,
                     false});
}

// grad_weight [K, size] (+)= sum of grad_logits [count, K]' features [count, size] over the terms.
template <class T>
void classifier_gradient(int64_t count, int64_t size, int64_t classes, int terms,
                         const Factors<T> (&term)[2], T* grad_weight, bool accumulate) {
  product(Product<T>{classes,
                     size,
                     count,
                     terms,
                     {term[0], term[1]},
                     1,
                     classes,
                     size,
                     kPanel<T>,
                     0,
                     grad_weight,
                     size,
                     accumulate});
}
