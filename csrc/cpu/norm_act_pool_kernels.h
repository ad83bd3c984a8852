// The four passes of norm-activation-pool over one image, compiled once per instruction set.
//
// An image [H, W, C] is processed window by window, one pack (SIMD vector) of channels at a time. A
// window is the 1 (no pooling) or 4 pixels that make one output pixel. All values between load and
// store stay in registers.
//
// The reductions that a norm group needs run in three stages: sum per channel (in T over a row, in
// double over the rows), combine the channels of the group, copy the result back to every channel.
// The loops over pixels thus handle single channels only. Without a norm they run with mean = 0 and
// rstd = 1 instead of branching.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"

#include "cpu/pooling.h"

// Calls body(at, out) for every window. `at` holds the offset of each pixel's first channel in the
// image, `out` the offset of the output pixel. `end_row` is called after each row of windows.
template <Pooling pooling, class Body, class EndRow>
TM_INLINE void for_windows(const NormActPoolShape& shape, const Body& body, const EndRow& end_row) {
  const int64_t c = shape.channels, below = shape.width * c;
  int64_t out = 0;
  for (int64_t row = 0; row < shape.out_height(); ++row) {
    for (int64_t column = 0; column < shape.out_width(); ++column, out += c) {
      if constexpr (pooling == Pooling::kNone) {
        const int64_t at[1] = {out};
        body(at, out);
      } else {
        const int64_t first = 2 * (row * shape.width + column) * c;
        const int64_t at[4] = {first, first + c, first + below, first + below + c};
        body(at, out);
      }
    }
    end_row();
  }
}

// Sums over an image: `count` sums per channel. The caller adds to row(i) in T; fold() moves the
// rows into total(i) in double after each row of pixels or windows. The double sum keeps precision.
template <class T, int count>
class ChannelSums {
 public:
  explicit ChannelSums(int64_t channels)
      : channels_(channels), row_(count * channels, T(0)), total_(count * channels, 0.0) {}
  T* row(int which) { return row_.data() + which * channels_; }
  double* total(int which) { return total_.data() + which * channels_; }
  void fold() {
    for (size_t i = 0; i < row_.size(); ++i) {
      total_[i] += row_[i];
      row_[i] = T(0);
    }
  }
  // For every channel, the mean over its group.
  std::vector<T> group_means(const NormActPoolShape& shape, int which) {
    const int64_t size = channels_ / shape.groups;
    std::vector<T> means(channels_);
    for (int64_t group = 0; group < shape.groups; ++group) {
      const double* first = total(which) + group * size;
      double sum = 0;
      for (int64_t c = 0; c < size; ++c) sum += first[c];
      std::fill_n(means.begin() + group * size, size,
                  static_cast<T>(sum / static_cast<double>(size * shape.pixels())));
    }
    return means;
  }

 private:
  int64_t channels_;
  std::vector<T> row_;
  std::vector<double> total_;
};

// Expands group values [B, G] of one image to one value per channel. Without a norm every channel
// gets `none`. Batch norm has a single row of group values for all images.
template <class T>
std::vector<T> to_channels(const NormActPoolShape& shape, const T* groups, int64_t image, T none) {
  std::vector<T> channels(shape.channels, none);
  const int64_t first = shape.over_batch ? 0 : image * shape.groups;
  for (int64_t c = 0; shape.groups > 0 && c < shape.channels; ++c) {
    channels[c] = groups[first + c * shape.groups / shape.channels];
  }
  return channels;
}

template <class T>
void to_groups(const NormActPoolShape& shape, const T* channels, int64_t image, T* groups) {
  for (int64_t group = 0; group < shape.groups; ++group) {
    groups[image * shape.groups + group] = channels[group * (shape.channels / shape.groups)];
  }
}

// Weight or bias, read at the offset of a pixel. If `given` is null, every channel has the constant
// `none`.
template <class T>
struct Affine {
  Affine(const NormActPoolShape& shape, const T* given, T none)
      : stand_in(given == nullptr ? shape.channels : 0, none),
        values(given == nullptr ? stand_in.data() : given),
        step(given != nullptr && shape.elementwise ? 1 : 0) {}
  template <class V>
  TM_INLINE V at(int64_t pixel, int64_t c) const {
    return load<V>(values + step * pixel + c);
  }
  std::vector<T> stand_in;
  const T* values;
  int64_t step;  // 1: values [H, W, C]; 0: values [C]
};

// Computes xh and z at the pixels of one image.
template <class T>
struct Primal {
  template <class Params>
  Primal(const Params& p, int64_t image)
      : x(p.x + image * p.shape.pixels() * p.shape.channels),
        mean(to_channels<T>(p.shape, p.mean, image, T(0))),
        rstd(to_channels<T>(p.shape, p.rstd, image, T(1))),
        m(mean.data()),
        s(rstd.data()),
        weight(p.shape, p.weight, T(1)),
        bias(p.shape, p.bias, T(0)) {}
  template <class V>
  TM_INLINE V xh(int64_t pixel, int64_t c) const {
    return normalised(load<V>(x + pixel + c), load<V>(m + c), load<V>(s + c));
  }
  template <class V>
  TM_INLINE V z(const V& xh, int64_t pixel, int64_t c) const {
    return xh * weight.template at<V>(pixel, c) + bias.template at<V>(pixel, c);
  }
  const T* x;
  std::vector<T> mean, rstd;
  const T *m, *s;
  Affine<T> weight, bias;
};

// Computes xh' and z' at the pixels of one image.
template <class T>
struct Tangent {
  template <class Params>
  Tangent(const Params& p, int64_t image)
      : x(p.x_tangent + image * p.shape.pixels() * p.shape.channels),
        mean(to_channels<T>(p.shape, p.mean_tangent, image, T(0))),
        projection(to_channels<T>(p.shape, p.projection, image, T(0))),
        m(mean.data()),
        q(projection.data()),
        weight(p.shape, p.weight_tangent, T(0)),
        bias(p.shape, p.bias_tangent, T(0)) {}
  template <class V>
  TM_INLINE V xh(const Primal<T>& primal, const V& primal_xh, int64_t pixel, int64_t c) const {
    return normalised_tangent(load<V>(x + pixel + c), load<V>(m + c), load<V>(primal.s + c),
                              load<V>(q + c), primal_xh);
  }
  template <class V>
  TM_INLINE V z(const Primal<T>& primal, const V& primal_xh, const V& tangent_xh, int64_t pixel,
                int64_t c) const {
    return affine_tangent(primal.weight.template at<V>(pixel, c), weight.template at<V>(pixel, c),
                          bias.template at<V>(pixel, c), primal_xh, tangent_xh);
  }
  const T* x;
  std::vector<T> mean, projection;
  const T *m, *q;
  Affine<T> weight, bias;
};

// Sums the gradients of weight and bias over one image. Values per channel go to rows 0 and 1 of
// `sums`, and finish() copies the totals to partial_grad_affine. Values per pixel (elementwise) go
// straight to partial_grad_affine. If the gradients are not wanted, they are summed in `sums` and
// dropped.
template <class T, int count>
struct AffineGradient {
  AffineGradient(const NormActPoolShape& shape, ChannelSums<T, count>& sums, T* partial_grad_affine,
                 bool wanted, int64_t image)
      : size(shape.affine_size()),
        channels(shape.channels),
        partial(wanted ? partial_grad_affine + image * 2 * size : nullptr),
        step(wanted && shape.elementwise ? 1 : 0),
        weight(step == 1 ? partial : sums.row(0)),
        bias(step == 1 ? partial + size : sums.row(1)) {
    if (step == 1) std::fill_n(partial, 2 * size, T(0));
  }
  template <class V>
  TM_INLINE void add(int64_t pixel, int64_t c, const V& weight_share, const V& bias_share) const {
    add_to<V>(weight + step * pixel + c, weight_share);
    add_to<V>(bias + step * pixel + c, bias_share);
  }
  void finish(ChannelSums<T, count>& sums) const {
    if (partial == nullptr || step == 1) return;
    std::copy_n(sums.total(0), channels, partial);
    std::copy_n(sums.total(1), channels, partial + size);
  }
  int64_t size, channels;
  T* partial;
  int64_t step;
  T *weight, *bias;
};

// Zeroes the pixels of a last odd row or column. Pooling drops them, so they have no gradient.
template <class T>
void clear_dropped(const NormActPoolShape& shape, T* image) {
  if (shape.pooling == Pooling::kNone || (shape.height % 2 == 0 && shape.width % 2 == 0)) return;
  const int64_t row_size = shape.width * shape.channels;
  const int64_t used = 2 * shape.out_width() * shape.channels;
  for (int64_t row = 0; row < shape.height; ++row) {
    const int64_t first = row < 2 * shape.out_height() ? used : 0;
    std::fill_n(image + row * row_size + first, row_size - first, T(0));
  }
}

// Calls body(pixel) with the offset of every pixel, and folds the sums after each row.
template <class Sums, class Body>
TM_INLINE void for_pixels(const NormActPoolShape& shape, Sums& sums, const Body& body) {
  for (int64_t row = 0; row < shape.height; ++row) {
    for (int64_t column = 0; column < shape.width; ++column) {
      body((row * shape.width + column) * shape.channels);
    }
    sums.fold();
  }
}

// The `count` means per channel that the second half of a pass uses. They are the means of one
// image. A norm over the batch runs in two phases instead: kSums stores the means of each image in
// batch.each, and kUse reads the means over all images from batch.all.
template <class T, int count>
class Means {
 public:
  Means(const NormActPoolShape& shape, NormPhase phase, const BatchMeans<T>& batch, int64_t image)
      : keeps_(phase == NormPhase::kSums), channels_(shape.channels) {
    if (keeps_) each_ = batch.each + image * count * channels_;
    if (phase == NormPhase::kUse) all_ = batch.all;
  }
  void set(int which, std::vector<T> values) {
    if (keeps_) std::copy(values.begin(), values.end(), each_ + which * channels_);
    own_[which] = std::move(values);
  }
  const T* of(int which) const {
    return all_ == nullptr ? own_[which].data() : all_ + which * channels_;
  }

 private:
  bool keeps_;
  int64_t channels_;
  T* each_ = nullptr;
  const T* all_ = nullptr;
  std::vector<T> own_[count];
};

// Computes the mean first, then the squared deviations from it. This order stays accurate if the
// mean is large.
template <class T>
void group_statistics(const NormActPoolForward<T>& p, int64_t image, Means<T, 2>& means) {
  const NormActPoolShape& shape = p.shape;
  const T* x = p.x + image * shape.pixels() * shape.channels;
  ChannelSums<T, 2> sums(shape.channels);
  T *sum = sums.row(0), *squares = sums.row(1);
  for_pixels(shape, sums, [&](int64_t pixel) {
    for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      add_to<V>(sum + c, load<V>(x + pixel + c));
    });
  });
  means.set(0, sums.group_means(shape, 0));
  const T* m = means.of(0);
  for_pixels(shape, sums, [&](int64_t pixel) {
    for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      const V deviation = load<V>(x + pixel + c) - load<V>(m + c);
      add_to<V>(squares + c, deviation * deviation);
    });
  });
  means.set(1, sums.group_means(shape, 1));
}

// Writes mean and rstd = 1 / sqrt(variance + eps) of each group, from mean and variance per
// channel.
template <class T>
void write_statistics(const NormActPoolForward<T>& p, const T* mean, const T* variance,
                      int64_t image) {
  to_groups(p.shape, mean, image, p.mean);
  std::vector<T> rstd(variance, variance + p.shape.channels);
  for (T& value : rstd) value = static_cast<T>(1.0 / std::sqrt(double(value) + p.shape.eps));
  to_groups(p.shape, rstd.data(), image, p.rstd);
}

template <Activation activation, Pooling pooling, class T>
void forward_image(const NormActPoolForward<T>& p, int64_t image, NormPhase phase,
                   const BatchMeans<T>& batch) {
  constexpr int n = kWindow<pooling>;
  const NormActPoolShape& shape = p.shape;
  if (shape.groups > 0 && phase != NormPhase::kUse) {
    Means<T, 2> means(shape, phase, batch, image);
    group_statistics(p, image, means);
    if (phase == NormPhase::kSums) return;
    write_statistics(p, means.of(0), means.of(1), image);
  }
  const Primal<T> primal(p, image);
  T* out = p.out + image * shape.out_height() * shape.out_width() * shape.channels;
  for_windows<pooling>(
      shape,
      [&](const int64_t* at, int64_t to) {
        for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
          using V = typename decltype(pack)::type;
          V value[n], share[n];
          for (int k = 0; k < n; ++k) {
            const V xh = primal.template xh<V>(at[k], c);
            value[k] = activation_jet<activation, V>(primal.z(xh, at[k], c)).value;
          }
          pool_shares<pooling>(value, share);
          V pooled = share[0] * value[0];
          for (int k = 1; k < n; ++k) pooled += share[k] * value[k];
          store<V>(out + to + c, pooled);
        });
      },
      [] {});
}

template <Activation activation, Pooling pooling, class T>
void backward_image(const NormActPoolBackward<T>& p, int64_t image, NormPhase phase,
                    const BatchMeans<T>& batch) {
  constexpr int n = kWindow<pooling>;
  const NormActPoolShape& shape = p.shape;
  const int64_t out_size = shape.out_height() * shape.out_width() * shape.channels;
  const Primal<T> primal(p, image);
  const T* grad_out = p.grad_out + image * out_size;
  T* grad_x = p.grad_x + image * shape.pixels() * shape.channels;

  // First loop: writes dxh to grad_x. Sums the gradients of weight and bias, dxh, and dxh xh.
  Means<T, 2> means(shape, phase, batch, image);
  ChannelSums<T, 4> sums(shape.channels);
  if (phase != NormPhase::kUse) {
    const AffineGradient<T, 4> affine(shape, sums, p.partial_grad_affine, p.grad_weight != nullptr,
                                      image);
    T *sum_dxh = sums.row(2), *sum_dxh_xh = sums.row(3);
    for_windows<pooling>(
        shape,
        [&](const int64_t* at, int64_t from) {
          for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
            using V = typename decltype(pack)::type;
            V xh[n], value[n], first[n], share[n];
            for (int k = 0; k < n; ++k) {
              xh[k] = primal.template xh<V>(at[k], c);
              const auto jet = activation_jet<activation, V>(primal.z(xh[k], at[k], c));
              value[k] = jet.value;
              first[k] = jet.first;
            }
            pool_shares<pooling>(value, share);
            const V above = load<V>(grad_out + from + c);
            V dxh_all = Lanes<V>::constant(0), dxh_xh_all = dxh_all;
            for (int k = 0; k < n; ++k) {
              const V dz = first[k] * share[k] * above;
              const V dxh = dz * primal.weight.template at<V>(at[k], c);
              affine.add(at[k], c, dz * xh[k], dz);
              dxh_all += dxh;
              dxh_xh_all += dxh * xh[k];
              store<V>(grad_x + at[k] + c, dxh);
            }
            add_to<V>(sum_dxh + c, dxh_all);
            add_to<V>(sum_dxh_xh + c, dxh_xh_all);
          });
        },
        [&] { sums.fold(); });
    affine.finish(sums);
    clear_dropped(shape, grad_x);
    if (shape.groups == 0) return;  // without a norm dx = dxh
    for (int i : {0, 1}) means.set(i, sums.group_means(shape, 2 + i));
  }
  if (phase == NormPhase::kSums) return;

  // Second loop: turns dxh into dx, in place.
  const T *mean_dxh = means.of(0), *mean_dxh_xh = means.of(1);
  for_pixels(shape, sums, [&](int64_t pixel) {
    for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      T* dx = grad_x + pixel + c;
      const V xh = primal.template xh<V>(pixel, c);
      store<V>(dx, load<V>(primal.s + c) *
                       centred(load<V>(dx), load<V>(mean_dxh + c), load<V>(mean_dxh_xh + c), xh));
    });
  });
}

// Means <x'> and <xh x'> of each group, from which write_statistics makes m' and q.
template <class T>
void tangent_statistics(const NormActPoolTangent<T>& p, const Primal<T>& primal, int64_t image,
                        Means<T, 2>& means) {
  const NormActPoolShape& shape = p.shape;
  const T* x_tangent = p.x_tangent + image * shape.pixels() * shape.channels;
  ChannelSums<T, 2> sums(shape.channels);
  T *sum = sums.row(0), *sum_xh = sums.row(1);
  for_pixels(shape, sums, [&](int64_t pixel) {
    for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      const V value = load<V>(x_tangent + pixel + c);
      add_to<V>(sum + c, value);
      add_to<V>(sum_xh + c, value * primal.template xh<V>(pixel, c));
    });
  });
  for (int i : {0, 1}) means.set(i, sums.group_means(shape, i));
}

template <class T>
void write_statistics(const NormActPoolTangent<T>& p, const T* mean, const T* mean_xh,
                      int64_t image) {
  const std::vector<T> rstd = to_channels<T>(p.shape, p.rstd, image, T(1));
  std::vector<T> projection(mean_xh, mean_xh + p.shape.channels);
  for (int64_t c = 0; c < p.shape.channels; ++c) projection[c] *= rstd[c];
  to_groups(p.shape, mean, image, p.mean_tangent);
  to_groups(p.shape, projection.data(), image, p.projection);
}

template <Activation activation, Pooling pooling, class T>
void tangent_image(const NormActPoolTangent<T>& p, int64_t image, NormPhase phase,
                   const BatchMeans<T>& batch) {
  constexpr int n = kWindow<pooling>;
  const NormActPoolShape& shape = p.shape;
  const Primal<T> primal(p, image);
  if (shape.groups > 0 && phase != NormPhase::kUse) {
    Means<T, 2> means(shape, phase, batch, image);
    tangent_statistics(p, primal, image, means);
    if (phase == NormPhase::kSums) return;
    write_statistics(p, means.of(0), means.of(1), image);
  }
  const Tangent<T> tangent(p, image);
  T* out = p.out_tangent + image * shape.out_height() * shape.out_width() * shape.channels;
  for_windows<pooling>(
      shape,
      [&](const int64_t* at, int64_t to) {
        for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
          using V = typename decltype(pack)::type;
          V value[n], slope[n], share[n];
          for (int k = 0; k < n; ++k) {
            const V xh = primal.template xh<V>(at[k], c);
            const V xh_tangent = tangent.xh(primal, xh, at[k], c);
            const auto jet = activation_jet<activation, V>(primal.z(xh, at[k], c));
            value[k] = jet.value;
            slope[k] = jet.first * tangent.z(primal, xh, xh_tangent, at[k], c);
          }
          pool_shares<pooling>(value, share);
          V pooled = share[0] * slope[0];
          for (int k = 1; k < n; ++k) pooled += share[k] * slope[k];
          store<V>(out + to + c, pooled);
        });
      },
      [] {});
}

template <Activation activation, Pooling pooling, class T>
void backward_tangent_image(const NormActPoolBackwardTangent<T>& p, int64_t image, NormPhase phase,
                            const BatchMeans<T>& batch) {
  constexpr int n = kWindow<pooling>;
  const NormActPoolShape& shape = p.shape;
  const int64_t size = shape.pixels() * shape.channels;
  const int64_t out_size = shape.out_height() * shape.out_width() * shape.channels;
  const Primal<T> primal(p, image);
  const Tangent<T> tangent(p, image);
  const T* grad_out = p.grad_out + image * out_size;
  // A missing grad_out_tangent is a row of zeros that every pixel reads (step 0). A missing grad_x
  // is replaced by scratch memory, because dx is needed for dx'.
  const std::vector<T> zeros(p.grad_out_tangent == nullptr ? shape.channels : 0, T(0));
  const int64_t out_step = zeros.empty() ? 1 : 0;
  const T* grad_out_tangent = zeros.empty() ? p.grad_out_tangent + image * out_size : zeros.data();
  std::vector<T> unwanted(p.grad_x == nullptr ? size : 0);
  T* grad_x = unwanted.empty() ? p.grad_x + image * size : unwanted.data();
  T* grad_x_tangent = p.grad_x_tangent + image * size;

  // First loop: writes dxh to grad_x and dxh' to grad_x_tangent. Sums the tangents of the gradients
  // of weight and bias, then dxh, dxh xh, dxh', and dxh' xh + dxh xh'.
  Means<T, 4> means(shape, phase, batch, image);
  ChannelSums<T, 6> sums(shape.channels);
  if (phase != NormPhase::kUse) {
    const AffineGradient<T, 6> affine(shape, sums, p.partial_grad_affine,
                                      p.grad_weight_tangent != nullptr, image);
    T *sum_dxh = sums.row(2), *sum_dxh_xh = sums.row(3);
    T *sum_dxh_tangent = sums.row(4), *sum_dxh_xh_tangent = sums.row(5);
    for_windows<pooling>(
        shape,
        [&](const int64_t* at, int64_t from) {
          for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
            using V = typename decltype(pack)::type;
            V xh[n], xh_tangent[n], z_tangent[n], value[n], first[n], second[n], share[n];
            for (int k = 0; k < n; ++k) {
              xh[k] = primal.template xh<V>(at[k], c);
              xh_tangent[k] = tangent.xh(primal, xh[k], at[k], c);
              z_tangent[k] = tangent.z(primal, xh[k], xh_tangent[k], at[k], c);
              const auto jet = activation_jet<activation, V>(primal.z(xh[k], at[k], c));
              value[k] = jet.value;
              first[k] = jet.first;
              second[k] = jet.second;
            }
            pool_shares<pooling>(value, share);
            const V above = load<V>(grad_out + from + c);
            const V above_tangent = load<V>(grad_out_tangent + out_step * from + c);
            V dxh_all = Lanes<V>::constant(0), dxh_xh_all = dxh_all;
            V dxh_tangent_all = dxh_all, dxh_xh_tangent_all = dxh_all;
            for (int k = 0; k < n; ++k) {
              const V da = share[k] * above;
              const V dz = first[k] * da;
              const V dz_tangent =
                  first[k] * (share[k] * above_tangent) + second[k] * z_tangent[k] * da;
              const V w = primal.weight.template at<V>(at[k], c);
              const V dxh = w * dz;
              const V dxh_tangent =
                  product_tangent(w, tangent.weight.template at<V>(at[k], c), dz, dz_tangent);
              affine.add(at[k], c, product_tangent(dz, dz_tangent, xh[k], xh_tangent[k]),
                         dz_tangent);
              dxh_all += dxh;
              dxh_xh_all += dxh * xh[k];
              dxh_tangent_all += dxh_tangent;
              dxh_xh_tangent_all += product_tangent(dxh, dxh_tangent, xh[k], xh_tangent[k]);
              store<V>(grad_x + at[k] + c, dxh);
              store<V>(grad_x_tangent + at[k] + c, dxh_tangent);
            }
            add_to<V>(sum_dxh + c, dxh_all);
            add_to<V>(sum_dxh_xh + c, dxh_xh_all);
            add_to<V>(sum_dxh_tangent + c, dxh_tangent_all);
            add_to<V>(sum_dxh_xh_tangent + c, dxh_xh_tangent_all);
          });
        },
        [&] { sums.fold(); });
    affine.finish(sums);
    clear_dropped(shape, grad_x);
    clear_dropped(shape, grad_x_tangent);
    if (shape.groups == 0) return;
    for (int i : {0, 1, 2, 3}) means.set(i, sums.group_means(shape, 2 + i));
  }
  if (phase == NormPhase::kSums) return;

  // Second loop: turns dxh and dxh' into dx and dx', in place.
  const T *mean_dxh = means.of(0), *mean_dxh_xh = means.of(1);
  const T *mean_dxh_tangent = means.of(2), *mean_dxh_xh_tangent = means.of(3);
  for_pixels(shape, sums, [&](int64_t pixel) {
    for_packs<T>(shape.channels, [&](auto pack, int64_t c) {
      using V = typename decltype(pack)::type;
      T *dx = grad_x + pixel + c, *dx_tangent = grad_x_tangent + pixel + c;
      const V s = load<V>(primal.s + c), b_primal = load<V>(mean_dxh_xh + c);
      const V xh = primal.template xh<V>(pixel, c);
      const V xh_tangent = tangent.xh(primal, xh, pixel, c);
      const V value = s * centred(load<V>(dx), load<V>(mean_dxh + c), b_primal, xh);
      const V value_tangent =
          s * centred_tangent(load<V>(dx_tangent), load<V>(mean_dxh_tangent + c), b_primal,
                              load<V>(mean_dxh_xh_tangent + c), xh, xh_tangent) -
          load<V>(tangent.q + c) * value;
      store<V>(dx, value);
      store<V>(dx_tangent, value_tangent);
    });
  });
}

// Turns run-time choices into template arguments.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kLeakyRelu:
      return body(std::integral_constant<Activation, Activation::kLeakyRelu>());
    case Activation::kSigmoid:
      return body(std::integral_constant<Activation, Activation::kSigmoid>());
    case Activation::kNone:
      return body(std::integral_constant<Activation, Activation::kNone>());
  }
}

template <class Body>
void with_choices(const NormActPoolShape& shape, const Body& body) {
  with_activation(shape.activation, [&](auto activation) {
    switch (shape.pooling) {
      case Pooling::kAverage:
        return body(activation, std::integral_constant<Pooling, Pooling::kAverage>());
      case Pooling::kMax:
        return body(activation, std::integral_constant<Pooling, Pooling::kMax>());
      case Pooling::kNone:
        return body(activation, std::integral_constant<Pooling, Pooling::kNone>());
    }
  });
}

template <class T>
void forward(const NormActPoolForward<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& means) {
  with_choices(p.shape, [&](auto activation, auto pooling) {
    for (int64_t i = begin; i < end; ++i)
      forward_image<activation(), pooling()>(p, i, phase, means);
  });
}

template <class T>
void backward(const NormActPoolBackward<T>& p, int64_t begin, int64_t end, NormPhase phase,
              const BatchMeans<T>& means) {
  with_choices(p.shape, [&](auto activation, auto pooling) {
    for (int64_t i = begin; i < end; ++i)
      backward_image<activation(), pooling()>(p, i, phase, means);
  });
}

template <class T>
void tangent(const NormActPoolTangent<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& means) {
  with_choices(p.shape, [&](auto activation, auto pooling) {
    for (int64_t i = begin; i < end; ++i)
      tangent_image<activation(), pooling()>(p, i, phase, means);
  });
}

template <class T>
void backward_tangent(const NormActPoolBackwardTangent<T>& p, int64_t begin, int64_t end,
                      NormPhase phase, const BatchMeans<T>& means) {
  with_choices(p.shape, [&](auto activation, auto pooling) {
    for (int64_t i = begin; i < end; ++i)
      backward_tangent_image<activation(), pooling()>(p, i, phase, means);
  });
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
