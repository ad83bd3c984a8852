// The blocks of a student that run on CUDA as one kernel a pass (core/first_layer.h and
// core/fused_convolution.h), in float32. For ops/layer_student.h, which runs all others.
#pragma once

#include <utility>
#include <vector>

#include "core/first_layer.h"
#include "core/fused_convolution.h"
#include "core/half_operand.h"
#include "core/network.h"
#include "ops/workspace.h"

namespace trajmatch {

// What a block's forward pass leaves for its other passes, [B, C, H, W] in channels-last and
// [B, groups], and the gradient in its output.
struct KeptBlock {
  Tensor y;  // of the convolution; undefined where the kernels compute it anew
  Tensor mean, rstd, output, grad_output;
};

class FusedBlocks {
 public:
  // TRAJMATCH_CUDA_BLOCKS says which blocks to take, of those that fit:
  //   library   none
  //   first     the first one (the default)
  //   float32   all, with products in float32
  //   tf32      all, with products in TF32; the forward pass of a precise network in three of them
  //   fp16      all, with products in half precision, of scaled operands; the forward pass of a
  //             precise network as with tf32
  // Throws std::invalid_argument where it says anything else.
  FusedBlocks(const Network& network, Workspace& workspace, const Tensor& like);

  bool takes(size_t index) const { return takes_[index]; }
  // True if the first block's kernels, which do not keep y, take it on a GPU or its emulation: it
  // has their shape, and the current device the shared memory that they need.
  static bool takes_first(const Network& network, bool float32);

  // Activations are [B, C, H, W] in channels-last, theta and its kin [P].
  //
  // What comes before all other passes: where things lie, and what is derived from them anew.
  void begin(size_t index, const Tensor& theta, const Tensor& input, const KeptBlock& kept);
  // Fills what is kept, but for the gradient.
  void forward(size_t index, const Tensor& theta);
  // The tangent of the output along theta and, but for the first block, along the input.
  Tensor tangent(size_t index, const Tensor& theta, const Tensor& theta_tangent,
                 const OptionalTensor& input_tangent);
  // Writes the block's part of grad_theta; the gradient in the input, where wanted.
  OptionalTensor backward(size_t index, const Tensor& theta, const Tensor& grad_output,
                          const Tensor& grad_theta, bool wants_input);
  // Writes the block's part of the tangent of grad_theta. The gradient in the input (where wanted;
  // none of the first block's) and its tangent.
  std::pair<OptionalTensor, Tensor> backward_tangent(
      size_t index, const Tensor& theta, const Tensor& theta_tangent, const Tensor& grad_output,
      const Tensor& grad_output_tangent, const Tensor& grad_theta_tangent, bool wants_input);

 private:
  // What products take, an activation [B, C, H, W] or all parameters [P]; for those in half
  // precision also the halves (of an activation; weights are packed so) and the magnitudes that say
  // how they are scaled.
  struct Operand {
    Tensor values;
    OptionalTensor halves, magnitudes;
  };
  struct Packed {
    Tensor values;
    OptionalTensor magnitudes;
  };
  struct Term {
    Operand x;
    Packed weight;
  };
  struct State {
    Operand input, weight;
    KeptBlock kept;
    Operand input_tangent, weight_tangent;
    Tensor y_tangent, mean_tangent, projection;
  };
  // Places in theta or its tangent, and in a gradient.
  template <class T>
  struct Places {
    T *weight, *norm_weight, *norm_bias;
  };
  template <class T>
  Places<T> places_from(size_t index, T* first) const;
  Places<const float> places(size_t index, const Tensor& parameters) const;
  Places<float> gradient_places(size_t index, const Tensor& gradient) const;

  void clear_bias(size_t index, const Tensor& grad_theta) const;
  Tensor statistics(const char* name, size_t index);
  Tensor output(const char* name, size_t index);
  Tensor like_input(const char* name, size_t index);
  Tensor like_y(const char* name, size_t index);

  FirstLayerInputs first_inputs(const Tensor& theta) const;
  FirstLayerTangents first_tangents(const Tensor& theta_tangent) const;
  FirstLayerGradients first_gradients(const Tensor& grad_theta, const OptionalTensor& grad_images,
                                      bool tangent);
  FirstLayerShape first_shape() const;

  FusedConvolutionShape deep_shape(size_t index) const;
  FusedNorm deep_norm(size_t index, const Tensor& theta) const;
  Operand activation(const char* name, size_t index, const Tensor& values);
  Operand weight(const char* name, size_t index, const Tensor& parameters);
  // For half precision: fills what belongs to these operands, at most two.
  void scale(size_t index, const std::vector<Operand>& activations,
             const std::vector<Operand>& weights) const;
  // The block's weight in the kernels' order.
  Packed packed(const char* name, size_t index, const Operand& weight, bool turned,
                ProductKind kind);
  FusedConvolution convolution(size_t index, ProductKind kind, const std::vector<Term>& terms,
                               const Tensor& y) const;
  void weight_gradient(size_t index, const std::vector<std::pair<Operand, Operand>>& pairs,
                       const Tensor& grad_theta);
  Tensor turned(const char* name, size_t index,
                const std::vector<std::pair<Operand, Operand>>& grads_and_weights);

  const Network& network_;
  Workspace& workspace_;
  Tensor like_;
  std::vector<bool> takes_;
  ProductKind forward_kind_ = ProductKind::kPlain, kind_ = ProductKind::kPlain;
  int64_t batch_ = 0;
  std::vector<State> states_;
};

}  // namespace trajmatch
