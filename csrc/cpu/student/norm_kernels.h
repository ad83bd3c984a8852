// The four passes of cpu/student/norm.h, compiled once per instruction set. Letters as in
// core/norm_act_pool.h.
//
// Each pass processes one block of channels (a pack) window by window. A window is the one (no
// pooling) or four pixels of an output pixel. All values between load and store stay in registers.
// For a norm over more than one channel, the channels' sums are added up between the loops. Without
// a norm the loops run with mean = 0 and rstd = 1 instead of branching.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"
#include "cpu/pooling.h"

// The geometry of a pass: offsets of blocks, pixels and windows, and the reductions over groups.
template <Activation activation_, Pooling pooling_, bool elementwise_, class T>
struct Blocks {
  static constexpr Activation activation = activation_;
  static constexpr Pooling pooling = pooling_;
  static constexpr bool elementwise = elementwise_;  // weight and bias have one value per pixel
  static constexpr int window = kWindow<pooling>;
  static constexpr int64_t lanes = TM_VECTOR_BYTES / sizeof(T);

  explicit Blocks(const NormPass<T>& pass)
      : p(pass),
        height(pass.shape->height),
        width(pass.shape->width),
        affine_block(elementwise && p.pixel == lanes ? height * width * lanes : lanes) {}

  int64_t count() const { return p.width / lanes; }
  // Number of consecutive blocks that share statistics and so must be processed together: one, or
  // all if a group has several channels.
  int64_t span() const {
    return p.shape->groups == 0 || p.shape->groups == p.shape->channels ? 1 : count();
  }

  // Calls body(at, affine, out) for each window: the offsets of its pixels in the plane and in
  // weight and bias, and the offset of the output pixel.
  template <class Body>
  TM_INLINE void for_windows(const Body& body) const {
    constexpr int side = pooling == Pooling::kNone ? 1 : 2;
    const int64_t out_height = p.shape->out_height(), out_width = p.shape->out_width();
    for (int64_t row = 0; row < out_height; ++row) {
      for (int64_t column = 0; column < out_width; ++column) {
        int64_t at[window], affine[window];
        for (int k = 0; k < window; ++k) {
          const int64_t y = side * row + k / side, x = side * column + k % side;
          at[k] = (y * p.row + x) * p.pixel;
          affine[k] = elementwise ? (y * width + x) * p.pixel : 0;
        }
        body(at, affine, (row * p.out_row + column) * p.pixel);
      }
    }
  }
  // Calls body(at) for the pixels of a last odd row and column, which pooling drops.
  template <class Body>
  TM_INLINE void for_dropped(const Body& body) const {
    if constexpr (pooling == Pooling::kNone) return;
    for (int64_t row = 0; row < height; ++row) {
      const bool dropped = row == height - 1 && height % 2 != 0;
      for (int64_t column = dropped ? 0 : width / 2 * 2; column < width; ++column) {
        body((row * p.row + column) * p.pixel);
      }
    }
  }

  T* means(int which) const { return p.means + which * p.width; }
  // Calls sum(b) for blocks [begin, end), which leaves sums per channel in rows [first, last) of
  // means, and turns the sums into means over their groups. Without a norm the means are 0.
  template <class Sum>
  TM_INLINE void group_means(int first, int last, int64_t begin, int64_t end,
                             const Sum& sum) const {
    for (int64_t b = begin; b < end; ++b) sum(b);
    for (int i = first; i < last; ++i) sums_to_means(means(i), begin * lanes, end * lanes);
  }
  void sums_to_means(T* sum, int64_t begin, int64_t end) const {
    const NormActPoolShape& shape = *p.shape;
    if (shape.groups == 0) return std::fill(sum + begin, sum + end, T(0));
    const int64_t channels = shape.channels / shape.groups;
    if (channels == 1) {
      const T factor = T(1) / static_cast<T>(height * width);
      for (int64_t c = begin; c < end; ++c) sum[c] *= factor;
      return;
    }
    for (int64_t first = 0; first < shape.channels; first += channels) {
      double total = 0;
      for (int64_t c = first; c < first + channels; ++c) total += sum[c];
      const T mean = static_cast<T>(total / static_cast<double>(channels * height * width));
      for (int64_t c = first; c < first + channels; ++c) sum[c] = mean;
    }
  }

  const NormPass<T>& p;
  int64_t height, width, affine_block;
};

// Weight or bias of a block: one pack that stays in a register, or one pack per pixel.
template <class B, class V, class T>
struct Affine {
  explicit Affine(const T* values) : values(values), channel(load<V>(values)) {}
  TM_INLINE V at(int64_t offset) const {
    if constexpr (B::elementwise) return load<V>(values + offset);
    return channel;
  }
  const T* values;
  V channel;
};

// `count` sums over the pixels of one block, kept in registers.
template <int count, class V>
struct Sums {
  V value[count] = {};
  template <class T>
  void store_to(T* const (&to)[count], int64_t c) const {
    for (int i = 0; i < count; ++i) store<V>(to[i] + c, value[i]);
  }
  TM_INLINE void operator+=(const Sums& other) {
    for (int i = 0; i < count; ++i) value[i] += other.value[i];
  }
};

// The sum of body(at) over the pixels of a block, added up row by row.
template <class V, class B, class Body>
TM_INLINE V pixel_sum(const B& blocks, const Body& body) {
  V sum{};
  for (int64_t row = 0; row < blocks.height; ++row) {
    V of_row{};
    for (int64_t i = 0; i < blocks.width; ++i)
      of_row += body((row * blocks.p.row + i) * blocks.p.pixel);
    sum += of_row;
  }
  return sum;
}

// Each pass has two halves: sums() sums what the groups of blocks [begin, end) need, write() uses
// it.
template <class Pass, class B, class T>
void run_halves(const B& blocks, const NormPass<T>& p) {
  for (int64_t begin = 0, end; begin < blocks.count(); begin = end) {
    end = begin + blocks.span();
    if (p.phase != NormPhase::kUse) Pass::sums(blocks, p, begin, end);
    if (p.phase == NormPhase::kSums) continue;
    for (int64_t b = begin; b < end; ++b) Pass::write(blocks, p, b);
  }
}

struct Forward {
  // Computes the mean first, then the squared deviations from it. This order stays accurate if the
  // mean is large.
  template <class B, class T>
  static void sums(const B& blocks, const NormPass<T>& p, int64_t begin, int64_t end) {
    using V = Pack<T>;
    blocks.group_means(0, 1, begin, end, [&](int64_t b) {
      if (p.shape->groups == 0) return;
      const T* y = p.y + b * p.plane;
      store<V>(blocks.means(0) + b * B::lanes,
               pixel_sum<V>(blocks, [&](int64_t at) { return load<V>(y + at); }));
    });
    blocks.group_means(1, 2, begin, end, [&](int64_t b) {
      if (p.shape->groups == 0) return;
      const T* y = p.y + b * p.plane;
      const V mean = load<V>(blocks.means(0) + b * B::lanes);
      store<V>(blocks.means(1) + b * B::lanes, pixel_sum<V>(blocks, [&](int64_t at) {
                 const V deviation = load<V>(y + at) - mean;
                 return deviation * deviation;
               }));
    });
  }

  template <class B, class T>
  static void write(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const T eps = static_cast<T>(p.shape->eps), *variance = blocks.means(1);
    for (int64_t c = b * B::lanes; c < (b + 1) * B::lanes; ++c) {
      p.rstd[c] = p.shape->groups == 0 ? T(1) : T(1) / std::sqrt(variance[c] + eps);
    }
    const T* y = p.y + b * p.plane;
    const Affine<B, V, T> w(p.weight + b * blocks.affine_block);
    const Affine<B, V, T> shift(p.bias + b * blocks.affine_block);
    T *xh = p.xh + b * p.plane, *out = p.out + b * p.out_plane;
    const V m = load<V>(blocks.means(0) + b * B::lanes), s = load<V>(p.rstd + b * B::lanes);
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t to) {
      V value[B::window];
      for (int k = 0; k < B::window; ++k) {
        const V normal = normalised(load<V>(y + at[k]), m, s);
        store<V>(xh + at[k], normal);
        const V z = normal * w.at(affine[k]) + shift.at(affine[k]);
        value[k] = activation_jet<B::activation, V>(z).value;
      }
      store<V>(out + to, pool<B::pooling>(value));
    });
    blocks.for_dropped([&](int64_t at) { store<V>(xh + at, normalised(load<V>(y + at), m, s)); });
  }
};

struct Tangent {
  template <class B, class T>
  static void sums(const B& blocks, const NormPass<T>& p, int64_t begin, int64_t end) {
    using V = Pack<T>;
    blocks.group_means(0, 2, begin, end, [&](int64_t b) {
      if (p.shape->groups == 0) return;
      const T *xh = p.xh + b * p.plane, *y_tangent = p.y_tangent + b * p.plane;
      pixel_sum<Sums<2, V>>(blocks, [&](int64_t at) {
        const V value = load<V>(y_tangent + at);
        return Sums<2, V>{{value, value * load<V>(xh + at)}};
      }).store_to({blocks.means(0), blocks.means(1)}, b * B::lanes);
    });
  }

  template <class B, class T>
  static void write(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const V m = load<V>(blocks.means(0) + b * B::lanes), s = load<V>(p.rstd + b * B::lanes);
    const V q = load<V>(blocks.means(1) + b * B::lanes) * s;
    store<V>(p.projection + b * B::lanes, q);
    const int64_t affine_at = b * blocks.affine_block;
    const Affine<B, V, T> w(p.weight + affine_at), shift(p.bias + affine_at);
    const Affine<B, V, T> w_tangent(p.weight_tangent + affine_at);
    const Affine<B, V, T> shift_tangent(p.bias_tangent + affine_at);
    const T *xh = p.xh + b * p.plane, *y_tangent = p.y_tangent + b * p.plane;
    T *xh_tangent = p.xh_tangent + b * p.plane, *out = p.out_tangent + b * p.out_plane;
    const auto tangent_of = [&](int64_t at, const V& normal) {
      return normalised_tangent(load<V>(y_tangent + at), m, s, q, normal);
    };
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t to) {
      V value[B::window], tangent[B::window];
      for (int k = 0; k < B::window; ++k) {
        const V normal = load<V>(xh + at[k]), weight = w.at(affine[k]);
        const V normal_tangent = tangent_of(at[k], normal);
        store<V>(xh_tangent + at[k], normal_tangent);
        const auto jet = activation_jet<B::activation, V>(normal * weight + shift.at(affine[k]));
        value[k] = jet.value;
        tangent[k] =
            jet.first * affine_tangent(weight, w_tangent.at(affine[k]), shift_tangent.at(affine[k]),
                                       normal, normal_tangent);
      }
      store<V>(out + to, pool_tangent<B::pooling>(value, tangent));
    });
    blocks.for_dropped(
        [&](int64_t at) { store<V>(xh_tangent + at, tangent_of(at, load<V>(xh + at))); });
  }
};

// Computes dz at the pixels of a window.
template <class B, class V, class T>
TM_INLINE void window_gradient(const V* normal, const Affine<B, V, T>& w,
                               const Affine<B, V, T>& shift, const int64_t* affine, const V& above,
                               V* dz) {
  V value[B::window], first[B::window], share[B::window];
  for (int k = 0; k < B::window; ++k) {
    const auto jet =
        activation_jet<B::activation, V>(normal[k] * w.at(affine[k]) + shift.at(affine[k]));
    value[k] = jet.value;
    first[k] = jet.first;
  }
  pool_shares<B::pooling>(value, share);
  for (int k = 0; k < B::window; ++k) dz[k] = first[k] * (share[k] * above);
}

struct Backward {
  template <class B, class T>
  static void sums(const B& blocks, const NormPass<T>& p, int64_t begin, int64_t end) {
    blocks.group_means(0, 2, begin, end, [&](int64_t b) { sum(blocks, p, b); });
  }

  // Sums of dxh and dxh xh, and the gradients of weight and bias.
  template <class B, class T>
  static void sum(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const int64_t affine_at = b * blocks.affine_block;
    const Affine<B, V, T> w(p.weight + affine_at), shift(p.bias + affine_at);
    const T *xh = p.xh + b * p.plane, *above = p.grad_out + b * p.out_plane;
    Sums<2, V> of_dz, of_dxh;  // [0] plain sum, [1] sum of products with xh
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t from) {
      V normal[B::window], dz[B::window];
      for (int k = 0; k < B::window; ++k) normal[k] = load<V>(xh + at[k]);
      window_gradient<B>(normal, w, shift, affine, load<V>(above + from), dz);
      for (int k = 0; k < B::window; ++k) {
        if constexpr (B::elementwise) {
          const V dxh = dz[k] * w.at(affine[k]);
          of_dxh.value[0] += dxh;
          of_dxh.value[1] += dxh * normal[k];
          add_to<V>(p.grad_weight + affine_at + affine[k], dz[k] * normal[k]);
          add_to<V>(p.grad_bias + affine_at + affine[k], dz[k]);
        } else {
          of_dz.value[0] += dz[k];
          of_dz.value[1] += dz[k] * normal[k];
        }
      }
    });
    // With one weight per channel, dxh = w dz needs only one multiplication, after the loop.
    if constexpr (!B::elementwise) {
      for (int i = 0; i < 2; ++i) of_dxh.value[i] = w.channel * of_dz.value[i];
      add_to<V>(p.grad_weight + b * B::lanes, of_dz.value[1]);
      add_to<V>(p.grad_bias + b * B::lanes, of_dz.value[0]);
    }
    of_dxh.store_to({blocks.means(0), blocks.means(1)}, b * B::lanes);
  }

  template <class B, class T>
  static void write(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const int64_t affine_at = b * blocks.affine_block;
    const Affine<B, V, T> w(p.weight + affine_at), shift(p.bias + affine_at);
    const T *xh = p.xh + b * p.plane, *above = p.grad_out + b * p.out_plane;
    T* grad_y = p.grad_y + b * p.plane;
    const V s = load<V>(p.rstd + b * B::lanes);
    // dx = s (dxh - <dxh> - xh <dxh xh>): scale the operands by s once, not every result.
    const V m = s * load<V>(blocks.means(0) + b * B::lanes);
    const V m_xh = s * load<V>(blocks.means(1) + b * B::lanes);
    const V scaled = s * w.channel;
    V sum{};
    const auto put = [&](int64_t at, const V& normal, const V& s_dxh) {
      const V value = centred(s_dxh, m, m_xh, normal);
      sum += value;
      store<V>(grad_y + at, value);
    };
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t from) {
      V normal[B::window], dz[B::window];
      for (int k = 0; k < B::window; ++k) normal[k] = load<V>(xh + at[k]);
      window_gradient<B>(normal, w, shift, affine, load<V>(above + from), dz);
      for (int k = 0; k < B::window; ++k) {
        put(at[k], normal[k], dz[k] * (B::elementwise ? s * w.at(affine[k]) : scaled));
      }
    });
    blocks.for_dropped([&](int64_t at) { put(at, load<V>(xh + at), V{}); });
    if (p.grad_conv_bias != nullptr) add_to<V>(p.grad_conv_bias + b * B::lanes, sum);
  }
};

struct BackwardTangent {
  static constexpr int kMeans = 4;  // means of dxh, dxh xh and their tangents

  template <class B, class T>
  static void sums(const B& blocks, const NormPass<T>& p, int64_t begin, int64_t end) {
    blocks.group_means(0, kMeans, begin, end, [&](int64_t b) { sum(blocks, p, b); });
  }

  // The operands of one block, and dz and dz' of its windows.
  template <class B, class T>
  struct Block {
    using V = Pack<T>;
    Block(const B& blocks, const NormPass<T>& p, int64_t b)
        : affine_at(b * blocks.affine_block),
          w(p.weight + affine_at),
          shift(p.bias + affine_at),
          w_tangent(p.weight_tangent + affine_at),
          shift_tangent(p.bias_tangent + affine_at),
          xh(p.xh + b * p.plane),
          xh_tangent(p.xh_tangent + b * p.plane),
          above(p.grad_out + b * p.out_plane),
          above_tangent(p.grad_out_tangent + b * p.out_plane) {}

    // Calls body(k, xh, xh', dz, dz') for each pixel k of a window.
    template <class Body>
    TM_INLINE void window(const int64_t* at, const int64_t* affine, int64_t from,
                          const Body& body) const {
      V normal[B::window], normal_tangent[B::window], value[B::window], first[B::window];
      // act'' z'; only the sigmoid has a second derivative that is not 0.
      V second_z_tangent[B::window], share[B::window];
      for (int k = 0; k < B::window; ++k) {
        normal[k] = load<V>(xh + at[k]);
        normal_tangent[k] = load<V>(xh_tangent + at[k]);
        const V weight = w.at(affine[k]);
        const auto jet = activation_jet<B::activation, V>(normal[k] * weight + shift.at(affine[k]));
        value[k] = jet.value;
        first[k] = jet.first;
        if constexpr (B::activation == Activation::kSigmoid) {
          second_z_tangent[k] = jet.second * affine_tangent(weight, w_tangent.at(affine[k]),
                                                            shift_tangent.at(affine[k]), normal[k],
                                                            normal_tangent[k]);
        }
      }
      pool_shares<B::pooling>(value, share);
      const V from_above = load<V>(above + from),
              from_above_tangent = load<V>(above_tangent + from);
      for (int k = 0; k < B::window; ++k) {
        const V da = share[k] * from_above, dz = first[k] * da;
        V dz_tangent = first[k] * (share[k] * from_above_tangent);
        if constexpr (B::activation == Activation::kSigmoid) {
          dz_tangent += second_z_tangent[k] * da;
        }
        body(k, normal[k], normal_tangent[k], dz, dz_tangent);
      }
    }

    int64_t affine_at;
    Affine<B, V, T> w, shift, w_tangent, shift_tangent;
    const T *xh, *xh_tangent, *above, *above_tangent;
  };

  template <class B, class T>
  static void sum(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const Block<B, T> block(blocks, p, b);
    // Sums of dz, dz xh, dz', and dz' xh + dz xh', and the same for dxh.
    Sums<kMeans, V> of_dz, of_dxh;
    const auto add = [](Sums<kMeans, V>& sums, const V& normal, const V& normal_tangent,
                        const V& value, const V& tangent) {
      sums.value[0] += value;
      sums.value[1] += value * normal;
      sums.value[2] += tangent;
      sums.value[3] += product_tangent(value, tangent, normal, normal_tangent);
    };
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t from) {
      block.window(
          at, affine, from,
          [&](int k, const V& normal, const V& normal_tangent, const V& dz, const V& dz_tangent) {
            if constexpr (B::elementwise) {
              const int64_t pixel = block.affine_at + affine[k];
              add_to<V>(p.grad_weight + pixel,
                        product_tangent(dz, dz_tangent, normal, normal_tangent));
              add_to<V>(p.grad_bias + pixel, dz_tangent);
              const V weight = block.w.at(affine[k]);
              add(of_dxh, normal, normal_tangent, weight * dz,
                  product_tangent(weight, block.w_tangent.at(affine[k]), dz, dz_tangent));
            } else {
              (void)k;
              add(of_dz, normal, normal_tangent, dz, dz_tangent);
            }
          });
    });
    if constexpr (!B::elementwise) {
      const V w = block.w.channel, w_tangent = block.w_tangent.channel;
      for (int i = 0; i < 2; ++i) {
        of_dxh.value[i] = w * of_dz.value[i];
        of_dxh.value[i + 2] = product_tangent(w, w_tangent, of_dz.value[i], of_dz.value[i + 2]);
      }
      add_to<V>(p.grad_weight + b * B::lanes, of_dz.value[3]);
      add_to<V>(p.grad_bias + b * B::lanes, of_dz.value[2]);
    }
    for (int i = 0; i < kMeans; ++i) store<V>(blocks.means(i) + b * B::lanes, of_dxh.value[i]);
  }

  template <class B, class T>
  static void write(const B& blocks, const NormPass<T>& p, int64_t b) {
    using V = Pack<T>;
    const Block<B, T> block(blocks, p, b);
    T *grad_y = p.grad_y + b * p.plane, *grad_y_tangent = p.grad_y_tangent + b * p.plane;
    const V s = load<V>(p.rstd + b * B::lanes), q = load<V>(p.projection + b * B::lanes);
    const V scaled = s * block.w.channel, scaled_tangent = s * block.w_tangent.channel;
    V mean[kMeans], sum{};
    for (int i = 0; i < kMeans; ++i) mean[i] = s * load<V>(blocks.means(i) + b * B::lanes);
    // Writes dx and dx', from s dxh and s dxh'.
    const auto put = [&](int64_t at, const V& normal, const V& normal_tangent, const V& s_dxh,
                         const V& s_dxh_tangent) {
      const V value = centred(s_dxh, mean[0], mean[1], normal);
      const V tangent =
          centred_tangent(s_dxh_tangent, mean[2], mean[1], mean[3], normal, normal_tangent) -
          q * value;
      sum += tangent;
      store<V>(grad_y + at, value);
      store<V>(grad_y_tangent + at, tangent);
    };
    blocks.for_windows([&](const int64_t* at, const int64_t* affine, int64_t from) {
      block.window(
          at, affine, from,
          [&](int k, const V& normal, const V& normal_tangent, const V& dz, const V& dz_tangent) {
            const V w = B::elementwise ? s * block.w.at(affine[k]) : scaled;
            const V w_tangent = B::elementwise ? s * block.w_tangent.at(affine[k]) : scaled_tangent;
            put(at[k], normal, normal_tangent, w * dz,
                product_tangent(w, w_tangent, dz, dz_tangent));
          });
    });
    blocks.for_dropped([&](int64_t at) {
      put(at, load<V>(block.xh + at), load<V>(block.xh_tangent + at), V{}, V{});
    });
    if (p.grad_conv_bias != nullptr) add_to<V>(p.grad_conv_bias + b * B::lanes, sum);
  }
};

// Turns run-time choices into template arguments.
template <class Pass, Activation activation, Pooling pooling, class T>
void with_affine(const NormPass<T>& p) {
  if (p.shape->elementwise) return run_halves<Pass>(Blocks<activation, pooling, true, T>(p), p);
  run_halves<Pass>(Blocks<activation, pooling, false, T>(p), p);
}

template <class Pass, Activation activation, class T>
void with_pooling(const NormPass<T>& p) {
  switch (p.shape->pooling) {
    case Pooling::kAverage:
      return with_affine<Pass, activation, Pooling::kAverage>(p);
    case Pooling::kMax:
      return with_affine<Pass, activation, Pooling::kMax>(p);
    case Pooling::kNone:
      return with_affine<Pass, activation, Pooling::kNone>(p);
  }
}

template <class Pass, class T>
void run_norm(const NormPass<T>& p) {
  switch (p.shape->activation) {
    case Activation::kRelu:
      return with_pooling<Pass, Activation::kRelu>(p);
    case Activation::kLeakyRelu:
      return with_pooling<Pass, Activation::kLeakyRelu>(p);
    case Activation::kSigmoid:
      return with_pooling<Pass, Activation::kSigmoid>(p);
    case Activation::kNone:
      return with_pooling<Pass, Activation::kNone>(p);
  }
}

}  // namespace

void norm_forward(const NormPass<float>& pass) { run_norm<Forward>(pass); }
void norm_tangent(const NormPass<float>& pass) { run_norm<Tangent>(pass); }
void norm_backward(const NormPass<float>& pass) { run_norm<Backward>(pass); }
void norm_backward_tangent(const NormPass<float>& pass) { run_norm<BackwardTangent>(pass); }

}  // namespace trajmatch::cpu::TM_ISA
