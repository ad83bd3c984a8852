// The passes of norm-activation-pool over images [H, W, C], compiled once per instruction set. One
// image at a time is copied into planes for the passes of cpu/student/norm.h.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"
#include "cpu/student/planes.h"

// The operands of a norm pass for one image at a time, in memory of their own. `count` is the
// number of means that the first half of the pass hands to the second.
template <class T>
class ImagePass {
 public:
  template <class Params>
  ImagePass(const Params& p, NormPhase phase, const BatchMeans<T>& batch, int64_t count)
      : shape_(p.shape),
        batch_(batch),
        count_(count),
        width_((p.shape.channels + kLanes - 1) / kLanes * kLanes),
        affine_size_(p.shape.elementwise ? p.shape.pixels() * width_ : width_),
        inside_(planes(p.shape.height, p.shape.width)),
        outside_(planes(p.shape.out_height(), p.shape.out_width())),
        mean_(take(width_)),
        mean_tangent_(take(width_)) {
    pass.shape = &p.shape;
    pass.width = width_;
    pass.row = inside_.row;
    pass.plane = inside_.block;
    pass.out_row = outside_.row;
    pass.out_plane = outside_.block;
    pass.phase = phase;
    pass.means = take(kNormMeans * width_);
    pass.rstd = take(width_);
    pass.projection = take(width_);
    pass.weight = affine(p.weight, T(1));
    pass.bias = affine(p.bias, T(0));
    pass.grad_weight = take(affine_size_);
    pass.grad_bias = take(affine_size_);
    if (phase != NormPhase::kUse) return;
    for (int64_t k = 0; k < count; ++k) {
      std::copy_n(batch.all + k * shape_.channels, shape_.channels, pass.means + k * width_);
    }
  }

  T* image() { return take(inside_.planes); }
  T* pooled() { return take(outside_.planes); }
  // Weight or bias, or a tangent of them, in the layout of the passes. `none` stands for a null.
  T* affine(const T* given, T none) {
    T* const to = take(affine_size_);
    if (given == nullptr) {
      std::fill_n(to, affine_size_, none);
    } else if (shape_.elementwise) {
      inside_.read(given, 0, 1, to);
    } else {
      std::copy_n(given, shape_.channels, to);
    }
    return to;
  }

  void read(const T* images, int64_t i, T* to) const { inside_.read(images, i, 1, to); }
  void read_pooled(const T* images, int64_t i, T* to) const { outside_.read(images, i, 1, to); }
  void write(const T* from, int64_t i, T* images) const { inside_.write(from, i, 1, images); }
  void write_pooled(const T* from, int64_t i, T* images) const {
    outside_.write(from, i, 1, images);
  }

  // Computes xh of image i in pass.xh.
  template <class Params>
  void read_xh(const Params& p, int64_t i) {
    using V = Pack<T>;
    read_groups(p.mean, i, T(0), mean_);
    read_groups(p.rstd, i, T(1), pass.rstd);
    read(p.x, i, pass.xh);
    each_pack([&](int64_t at, int64_t c) {
      const V x = load<V>(pass.xh + at);
      store<V>(pass.xh + at, normalised(x, load<V>(mean_ + c), load<V>(pass.rstd + c)));
    });
  }
  // Computes xh' of image i in pass.xh_tangent, after read_xh.
  template <class Params>
  void read_xh_tangent(const Params& p, int64_t i) {
    using V = Pack<T>;
    read_groups(p.mean_tangent, i, T(0), mean_tangent_);
    read_groups(p.projection, i, T(0), pass.projection);
    read(p.x_tangent, i, pass.xh_tangent);
    each_pack([&](int64_t at, int64_t c) {
      const V x_tangent = load<V>(pass.xh_tangent + at), xh = load<V>(pass.xh + at);
      store<V>(pass.xh_tangent + at,
               normalised_tangent(x_tangent, load<V>(mean_tangent_ + c), load<V>(pass.rstd + c),
                                  load<V>(pass.projection + c), xh));
    });
  }

  // Copies one value per channel to the groups [B, G] of image i. A batch norm has one row for all
  // images.
  void write_groups(const T* channels, int64_t i, T* groups) const {
    if (shape_.over_batch && i > 0) return;
    for (int64_t g = 0; g < shape_.groups; ++g) {
      groups[i * shape_.groups + g] = channels[g * (shape_.channels / shape_.groups)];
    }
  }

  void clear_affine_gradient() const {
    std::fill_n(pass.grad_weight, affine_size_, T(0));
    std::fill_n(pass.grad_bias, affine_size_, T(0));
  }
  // The first half of a backward pass computes the gradients of weight and bias.
  void write_affine_gradient(int64_t i, T* partial) const {
    if (pass.phase == NormPhase::kUse) return;
    for (const T* gradient : {pass.grad_weight, pass.grad_bias}) {
      T* const to = partial + (2 * i + (gradient == pass.grad_bias)) * shape_.affine_size();
      if (shape_.elementwise) {
        inside_.write(gradient, 0, 1, to);
      } else {
        std::copy_n(gradient, shape_.channels, to);
      }
    }
  }

  // True if the call computes the first half only. Then keeps the means of image i.
  bool only_sums(int64_t i) const {
    if (pass.phase != NormPhase::kSums) return false;
    for (int64_t k = 0; k < count_; ++k) {
      std::copy_n(pass.means + k * width_, shape_.channels,
                  batch_.each + (i * count_ + k) * shape_.channels);
    }
    return true;
  }

  NormPass<T> pass{};

 private:
  static constexpr int64_t kLanes = TM_VECTOR_BYTES / sizeof(T);

  T* take(int64_t size) { return memory_.emplace_back(size, T(0)).data(); }
  PlaneCopy<T> planes(int64_t height, int64_t width) const {
    const int64_t block = height * width * kLanes;
    return {shape_.channels, height, width, kLanes, width, block, width_ / kLanes * block};
  }
  void read_groups(const T* groups, int64_t i, T none, T* channels) const {
    const int64_t first = shape_.over_batch ? 0 : i * shape_.groups;
    for (int64_t c = 0; c < shape_.channels; ++c) {
      channels[c] = shape_.groups == 0 ? none : groups[first + c * shape_.groups / shape_.channels];
    }
  }
  // Calls body(at, c) for every pack of an image's planes. c is its first channel.
  template <class Body>
  TM_INLINE void each_pack(const Body& body) const {
    for (int64_t c = 0; c < width_; c += kLanes) {
      const int64_t first = c / kLanes * inside_.block;
      for (int64_t at = first; at < first + inside_.block; at += kLanes) body(at, c);
    }
  }

  const NormActPoolShape& shape_;
  const BatchMeans<T>& batch_;
  int64_t count_, width_, affine_size_;
  PlaneCopy<T> inside_, outside_;
  std::vector<std::vector<T>> memory_;
  T *mean_, *mean_tangent_;
};

template <class T>
void forward(const NormActPoolForward<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  pass.y = pass.xh = images.image();
  pass.out = images.pooled();
  for (int64_t i = begin; i < end; ++i) {
    images.read(p.x, i, pass.xh);
    norm_forward(pass);
    if (images.only_sums(i)) continue;
    images.write_groups(pass.means, i, p.mean);
    images.write_groups(pass.rstd, i, p.rstd);
    images.write_pooled(pass.out, i, p.out);
  }
}

template <class T>
void backward(const NormActPoolBackward<T>& p, int64_t begin, int64_t end, NormPhase phase,
              const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  pass.xh = pass.grad_y = images.image();
  T* const above = images.pooled();
  pass.grad_out = above;
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i);
    images.read_pooled(p.grad_out, i, above);
    images.clear_affine_gradient();
    norm_backward(pass);
    if (p.grad_weight != nullptr) images.write_affine_gradient(i, p.partial_grad_affine);
    if (images.only_sums(i)) continue;
    images.write(pass.grad_y, i, p.grad_x);
  }
}

template <class T>
void tangent(const NormActPoolTangent<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  pass.weight_tangent = images.affine(p.weight_tangent, T(0));
  pass.bias_tangent = images.affine(p.bias_tangent, T(0));
  pass.xh = images.image();
  pass.xh_tangent = images.image();
  pass.out_tangent = images.pooled();
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i);
    images.read(p.x_tangent, i, pass.xh_tangent);
    norm_tangent(pass);
    if (images.only_sums(i)) continue;
    images.write_groups(pass.means, i, p.mean_tangent);
    images.write_groups(pass.projection, i, p.projection);
    images.write_pooled(pass.out_tangent, i, p.out_tangent);
  }
}

template <class T>
void backward_tangent(const NormActPoolBackwardTangent<T>& p, int64_t begin, int64_t end,
                      NormPhase phase, const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 4);
  NormPass<T>& pass = images.pass;
  pass.weight_tangent = images.affine(p.weight_tangent, T(0));
  pass.bias_tangent = images.affine(p.bias_tangent, T(0));
  pass.xh = pass.grad_y = images.image();
  pass.xh_tangent = pass.grad_y_tangent = images.image();
  T *const above = images.pooled(), *const above_tangent = images.pooled();
  pass.grad_out = above;
  pass.grad_out_tangent = above_tangent;
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i);
    images.read_xh_tangent(p, i);
    images.read_pooled(p.grad_out, i, above);
    if (p.grad_out_tangent != nullptr) images.read_pooled(p.grad_out_tangent, i, above_tangent);
    images.clear_affine_gradient();
    norm_backward_tangent(pass);
    if (p.grad_weight_tangent != nullptr) images.write_affine_gradient(i, p.partial_grad_affine);
    if (images.only_sums(i)) continue;
    if (p.grad_x != nullptr) images.write(pass.grad_y, i, p.grad_x);
    images.write(pass.grad_y_tangent, i, p.grad_x_tangent);
  }
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
