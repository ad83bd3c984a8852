// What the layer-by-layer engine (ops/layer_student.h) is made of: layers that make values, and the
// call that they share. A layer runs one node of the network or, as a fused block, two.
#pragma once

#include <optional>
#include <vector>

#include "ops/network.h"
#include "ops/workspace.h"

namespace trajmatch {

// What a node makes, [B, C, H, W] in channels-last, and what the passes find for it.
struct Value {
  Tensor data, grad;
  Tensor mean, rstd;  // [B, groups], of a norm
  OptionalTensor tangent;
  Tensor grad_tangent;
  // Whether this call has found a share of the gradients, to which others are added.
  bool has_grad = false, has_grad_tangent = false;
};

// What a tape keeps of a value, since gradient_jvp reads it.
struct Kept {
  bool data = false;        // a node behind it needs it
  bool statistics = false;  // it is a norm's
  bool grad = false;        // having it again would cost a product
};

// One call after the other: the gradient of a loss, or its derivative along tangents.
struct LayerCall {
  LayerCall(const Network& network, const Tensor& like);

  // Forgets the last call. Of a tape that gradient writes or gradient_jvp reads, values get their
  // places; `jvp` says which.
  void begin(const Tensor& images, const std::optional<VectorPart>& tape, bool jvp);

  // Memory for a value or its kin, by name.
  Tensor place(const char* name, size_t value) {
    return workspace.channels_last(name, value, sizes_of_value(value), like);
  }
  // Where a kernel may write a value, and the gradient in it before set_data and add_grad.
  Tensor data_place(size_t value);
  Tensor grad_place(size_t value);
  Tensor grad_tangent_place(size_t value);
  // Hand over what a node has found.
  void set_data(size_t value, const Tensor& computed);
  void add_grad(size_t value, const Tensor& computed);
  void add_grad_tangent(size_t value, const Tensor& computed);

  // Whether a node is to find the gradient in a value that it reads. Its tangent is always wanted.
  bool wants_grad(size_t value) const {
    if (value == 0) return wants_image_gradient;
    return !(is_jvp && has_tape && kept[value].grad);
  }
  Ints sizes_of_value(size_t value) const;

  const Network& network;
  Tensor like;
  Workspace workspace;
  std::vector<Kept> kept;  // by value
  // Of this call:
  int64_t batch = 0;
  bool has_tape = false, is_jvp = false, wants_image_gradient = false;
  Tensor theta;                  // [P]
  OptionalTensor theta_tangent;  // [P]
  Tensor grad_theta;             // [P], or its tangent
  std::vector<Value> values;     // 0: the images
  Tensor logits, grad_logits;    // [B, K]
};

// Elements of the tape of a batch.
int64_t layer_tape_size(const Network& network, int64_t batch, bool float32);

// The passes of a call, in this order: begin; forward, but where a tape is read; in gradient_jvp
// tangent; backward, in gradient_jvp with the tangents of the gradients.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual void begin() {}
  virtual void forward() = 0;
  virtual void tangent() = 0;
  virtual void backward() = 0;
};

}  // namespace trajmatch
