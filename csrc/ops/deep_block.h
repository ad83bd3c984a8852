// A block after the first one, with as many output as input channels, run by the kernels of
// core/fused_convolution.h. The forward and the tangent pass are one fused kernel each, after
// kernels that prepare the operands. The backward pass runs the norm, the weight gradient and the
// input gradient separately.
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

  // For a float32 network: true if the network asks for these kernels, the kernels support the
  // block, and the current device has enough shared memory.
  static bool takes(const Network& network, size_t index);

  void begin() override;
  void forward() override;
  void tangent() override;
  void backward() override;

 private:
  // How products are rounded: in the primal forward pass, and in all other passes.
  struct Kinds {
    ProductKind forward, other;
  };
  static Kinds kinds_of(const Network& network);
  // An operand of products: an activation [K B, C, H, W] or all parameters [K, P]. If the kernel
  // that made an activation could not round it (a precise forward pass reads all bits; half
  // precision is another format), `rounded` holds a rounded copy. In half precision, operands also
  // have the magnitudes that define their scale. Weights are rounded when they are packed.
  struct Operand {
    Tensor values;
    OptionalTensor rounded, magnitudes;
  };
  // A weight of the block in the orders that the kernels read: as it is, for the forward pass and
  // for tangents, and turned.
  struct Weight {
    Operand all;
    Tensor forward, tangent, turned;
  };
  struct Term {
    Operand x;
    Tensor packed;
    OptionalTensor magnitudes;  // of the weight
  };
  using Pairs = std::vector<std::pair<Operand, Operand>>;

  // Prepares the operand of the primal input.
  void read_input();
  FusedConvolutionShape shape() const { return shape_of(block_, call_.batch, call_.trajectories); }
  static FusedConvolutionShape shape_of(const Block& block, int64_t batch, int64_t trajectories);
  FusedNorm norm() const;
  Tensor magnitudes(const char* name) const;
  Operand activation(const char* name, const Tensor& values, bool is_rounded) const;
  // Ask for the magnitudes of a weight, and for a packed copy of it, before the first layer runs.
  Operand weight(const char* name, const Tensor& parameters) const;
  Tensor packed(const char* name, const Operand& weight, bool turned, ProductKind kind) const;
  // Fills the rounded copies of one or two activations, if they have any.
  void round(const std::vector<Operand>& activations) const;
  FusedConvolution convolution(ProductKind kind, const std::vector<Term>& terms,
                               const Tensor& y) const;
  void weight_gradient(const Pairs& activations_and_grads) const;
  // Writes the gradient in the input: the sum of products of a gradient in y and a turned weight.
  Tensor input_gradient(const Tensor& place, const std::vector<Term>& terms) const;

  const Kinds kinds_;
  Operand input_, input_tangent_;
  Weight weight_, weight_tangent_;
  Tensor y_tangent_;
};

}  // namespace trajmatch
