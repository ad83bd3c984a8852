// A block behind the first one as one kernel a pass (core/fused_convolution.h): as many channels as
// before it.
#pragma once

#include <utility>
#include <vector>

#include "core/fused_convolution.h"
#include "core/half_operand.h"
#include "ops/fused_block.h"

namespace trajmatch {

class DeepBlock : public FusedBlock {
 public:
  DeepBlock(LayerCall& call, size_t index);

  // True if a block of a network in float32 has their shape and the network asks for them, and the
  // current device has the shared memory that they need.
  static bool takes(const Network& network, size_t index);

  void begin() override;
  void forward() override;
  void tangent() override;
  void backward() override;

 private:
  // How products are rounded: those of the primal forward pass, and all others.
  struct Kinds {
    ProductKind forward, other;
  };
  static Kinds kinds_of(const Network& network);
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
  using Pairs = std::vector<std::pair<Operand, Operand>>;

  // Makes operands of the primal input and weight.
  void read_input();
  FusedConvolutionShape shape() const { return shape_of(block_, call_.batch); }
  static FusedConvolutionShape shape_of(const Block& block, int64_t batch);
  FusedNorm norm() const;
  Operand activation(const char* name, const Tensor& values) const;
  Operand weight(const char* name, const Tensor& parameters) const;
  // For half precision: fills what belongs to these operands, at most two.
  void scale(const std::vector<Operand>& activations, const std::vector<Operand>& weights) const;
  // The block's weight in the kernels' order.
  Packed packed(const char* name, const Operand& weight, bool turned, ProductKind kind) const;
  FusedConvolution convolution(ProductKind kind, const std::vector<Term>& terms,
                               const Tensor& y) const;
  void weight_gradient(const Pairs& activations_and_grads) const;
  // The sum of the gradients in the input, each from a gradient in y and a weight.
  Tensor turned(const char* name, const Pairs& grads_and_weights) const;

  const Kinds kinds_;
  Operand input_, weight_, input_tangent_, weight_tangent_;
  Tensor y_tangent_;
};

}  // namespace trajmatch
