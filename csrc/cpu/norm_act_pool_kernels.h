// The passes of norm-activation-pool over images [H, W, C], compiled once per instruction set:
// those of cpu/student/norm.h, for one image after another.
//
// No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

#include "cpu/pack.h"
#include "cpu/student/planes.h"

// One image of an array [B, H, W, C], as a pass finds it: where it is if its channels fill whole
// packs, else copied into planes.
template <class T>
struct Image {
  PlaneCopy<T> copy;
  T* planes;  // null: where it is
  int64_t size;

  const T* read(const T* images, int64_t i) const {
    if (planes == nullptr) return images + i * size;
    copy.read(images, i, 1, planes);
    return planes;
  }
  // Memory that the pass writes the image to. write() then completes it.
  T* place(T* images, int64_t i) const { return planes == nullptr ? images + i * size : planes; }
  void write(T* images, int64_t i) const { copy.write(planes, i, 1, images); }
};

// A norm pass over one image at a time, and the memory that it needs. `count` is the number of
// means that its first half hands to its second.
template <class T>
class ImagePass {
 public:
  template <class Params>
  ImagePass(const Params& p, NormPhase phase, const BatchMeans<T>& batch, int64_t count)
      : shape_(p.shape),
        batch_(batch),
        count_(count),
        width_((shape_.channels + kLanes - 1) / kLanes * kLanes),
        in_place_(width_ == shape_.channels),
        affine_size_(shape_.elementwise ? shape_.pixels() * width_ : width_),
        channels_(zeros(width_)) {
    const int64_t out_pixels = shape_.out_height() * shape_.out_width();
    pass.shape = &shape_;
    pass.width = width_;
    pass.pixel = in_place_ ? width_ : kLanes;
    pass.row = shape_.width;
    pass.plane = in_place_ ? kLanes : shape_.pixels() * kLanes;
    pass.out_row = shape_.out_width();
    pass.out_plane = in_place_ ? kLanes : out_pixels * kLanes;
    pass.phase = phase;
    pass.means = zeros(kNormMeans * width_);
    pass.rstd = zeros(width_);
    pass.projection = zeros(width_);
    pass.xh = zeros(shape_.pixels() * width_);
    pass.weight = affine(p.weight, T(1));
    pass.bias = affine(p.bias, T(0));
    if (phase != NormPhase::kUse) return;
    for (int64_t k = 0; k < count; ++k) {
      std::copy_n(batch.all + k * shape_.channels, shape_.channels, pass.means + k * width_);
    }
  }

  T* zeros(int64_t size) { return memory_.emplace_back(size, T(0)).data(); }
  Image<T> image() { return image_of(shape_.height, shape_.width); }
  Image<T> pooled() { return image_of(shape_.out_height(), shape_.out_width()); }
  // Weight or bias, or a tangent of them, in the layout of the pass. `none` stands for a null.
  const T* affine(const T* given, T none) {
    if (given != nullptr && in_place_) return given;
    if (given != nullptr && shape_.elementwise) return image().read(given, 0);
    T* const to = zeros(affine_size_);
    if (given != nullptr) {
      std::copy_n(given, shape_.channels, to);
    } else {
      std::fill_n(to, affine_size_, none);
    }
    return to;
  }

  // Computes xh of image i from x.
  template <class Params>
  void read_xh(const Params& p, int64_t i, const T* x) {
    using V = Pack<T>;
    read_groups(p.mean, i, T(0), channels_);
    read_groups(p.rstd, i, T(1), pass.rstd);
    each_pack([&](int64_t at, int64_t c) {
      const V mean = load<V>(channels_ + c), rstd = load<V>(pass.rstd + c);
      store<V>(pass.xh + at, normalised(load<V>(x + at), mean, rstd));
    });
  }
  // Computes xh' of image i from x', after read_xh.
  template <class Params>
  void read_xh_tangent(const Params& p, int64_t i, const T* x_tangent) {
    using V = Pack<T>;
    read_groups(p.mean_tangent, i, T(0), channels_);
    read_groups(p.projection, i, T(0), pass.projection);
    each_pack([&](int64_t at, int64_t c) {
      const V mean = load<V>(channels_ + c), rstd = load<V>(pass.rstd + c);
      const V projection = load<V>(pass.projection + c), xh = load<V>(pass.xh + at);
      store<V>(pass.xh_tangent + at,
               normalised_tangent(load<V>(x_tangent + at), mean, rstd, projection, xh));
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

  // Takes weight and bias of the tangent, and memory for xh'.
  template <class Params>
  void take_tangents(const Params& p) {
    pass.weight_tangent = affine(p.weight_tangent, T(0));
    pass.bias_tangent = affine(p.bias_tangent, T(0));
    pass.xh_tangent = zeros(shape_.pixels() * width_);
  }

  // The gradients of weight and bias of one image: zero before the pass, copied to `partial` after
  // its first half.
  void take_affine_gradient() {
    pass.grad_weight = zeros(affine_size_);
    pass.grad_bias = zeros(affine_size_);
  }
  void clear_affine_gradient() const {
    std::fill_n(pass.grad_weight, affine_size_, T(0));
    std::fill_n(pass.grad_bias, affine_size_, T(0));
  }
  void write_affine_gradient(int64_t i, T* partial) const {
    if (pass.phase == NormPhase::kUse) return;
    T* to = partial + 2 * i * shape_.affine_size();
    for (const T* gradient : {pass.grad_weight, pass.grad_bias}) {
      if (shape_.elementwise && !in_place_) {
        planes(shape_.height, shape_.width).write(gradient, 0, 1, to);
      } else {
        std::copy_n(gradient, shape_.affine_size(), to);
      }
      to += shape_.affine_size();
    }
  }

  // True in the first of two phases, which keeps the means of image i and ends there.
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

  PlaneCopy<T> planes(int64_t height, int64_t width) const {
    const int64_t block = height * width * kLanes;
    return {shape_.channels, height, width, kLanes, width, block, width_ / kLanes * block};
  }
  Image<T> image_of(int64_t height, int64_t width) {
    const int64_t pixels = height * width;
    return {planes(height, width), in_place_ ? nullptr : zeros(pixels * width_),
            pixels * shape_.channels};
  }
  void read_groups(const T* groups, int64_t i, T none, T* channels) const {
    const int64_t first = shape_.over_batch ? 0 : i * shape_.groups;
    for (int64_t c = 0; c < shape_.channels; ++c) {
      channels[c] = shape_.groups == 0 ? none : groups[first + c * shape_.groups / shape_.channels];
    }
  }
  // Calls body(at, c) for every pack of an image. c is its first channel.
  template <class Body>
  TM_INLINE void each_pack(const Body& body) const {
    for (int64_t c = 0; c < width_; c += kLanes) {
      int64_t at = c / kLanes * pass.plane;
      for (int64_t i = 0; i < shape_.pixels(); ++i, at += pass.pixel) body(at, c);
    }
  }

  const NormActPoolShape& shape_;
  const BatchMeans<T>& batch_;
  const int64_t count_, width_;
  const bool in_place_;
  const int64_t affine_size_;
  std::vector<std::vector<T>> memory_;
  T* const channels_;  // a value per channel
};

template <class T>
void forward(const NormActPoolForward<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  const Image<T> x = images.image(), out = images.pooled();
  for (int64_t i = begin; i < end; ++i) {
    pass.y = x.read(p.x, i);
    pass.out = out.place(p.out, i);
    norm_forward(pass);
    if (images.only_sums(i)) continue;
    images.write_groups(pass.means, i, p.mean);
    images.write_groups(pass.rstd, i, p.rstd);
    out.write(p.out, i);
  }
}

template <class T>
void backward(const NormActPoolBackward<T>& p, int64_t begin, int64_t end, NormPhase phase,
              const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  images.take_affine_gradient();
  const Image<T> x = images.image(), above = images.pooled();
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i, x.read(p.x, i));
    pass.grad_out = above.read(p.grad_out, i);
    pass.grad_y = x.place(p.grad_x, i);
    images.clear_affine_gradient();
    norm_backward(pass);
    if (p.partial_grad_affine != nullptr) images.write_affine_gradient(i, p.partial_grad_affine);
    if (images.only_sums(i)) continue;
    x.write(p.grad_x, i);
  }
}

template <class T>
void tangent(const NormActPoolTangent<T>& p, int64_t begin, int64_t end, NormPhase phase,
             const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 2);
  NormPass<T>& pass = images.pass;
  images.take_tangents(p);
  const Image<T> x = images.image(), out = images.pooled();
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i, x.read(p.x, i));
    pass.y_tangent = x.read(p.x_tangent, i);
    pass.out_tangent = out.place(p.out_tangent, i);
    norm_tangent(pass);
    if (images.only_sums(i)) continue;
    images.write_groups(pass.means, i, p.mean_tangent);
    images.write_groups(pass.projection, i, p.projection);
    out.write(p.out_tangent, i);
  }
}

template <class T>
void backward_tangent(const NormActPoolBackwardTangent<T>& p, int64_t begin, int64_t end,
                      NormPhase phase, const BatchMeans<T>& batch) {
  ImagePass<T> images(p, phase, batch, 4);
  NormPass<T>& pass = images.pass;
  images.take_tangents(p);
  images.take_affine_gradient();
  const Image<T> x = images.image(), x_tangent = images.image();
  const Image<T> above = images.pooled(), above_tangent = images.pooled();
  pass.grad_out_tangent = images.zeros(p.shape.out_height() * p.shape.out_width() * pass.width);
  for (int64_t i = begin; i < end; ++i) {
    images.read_xh(p, i, x.read(p.x, i));
    images.read_xh_tangent(p, i, x_tangent.read(p.x_tangent, i));
    pass.grad_out = above.read(p.grad_out, i);
    if (p.grad_out_tangent != nullptr) {
      pass.grad_out_tangent = above_tangent.read(p.grad_out_tangent, i);
    }
    pass.grad_y = p.grad_x == nullptr ? pass.xh : x.place(p.grad_x, i);
    pass.grad_y_tangent = x_tangent.place(p.grad_x_tangent, i);
    images.clear_affine_gradient();
    norm_backward_tangent(pass);
    if (p.partial_grad_affine != nullptr) images.write_affine_gradient(i, p.partial_grad_affine);
    if (images.only_sums(i)) continue;
    if (p.grad_x != nullptr) x.write(p.grad_x, i);
    x_tangent.write(p.grad_x_tangent, i);
  }
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
