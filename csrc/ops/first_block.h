// The first block, run by the kernels of core/first_layer.h: one operation per pass, which
// recomputes the output of the convolution.
#pragma once

#include "core/first_layer.h"
#include "ops/fused_block.h"

namespace trajmatch {

class FirstBlock : public FusedBlock {
 public:
  explicit FirstBlock(LayerCall& call) : FusedBlock(call, 0) {}

  // For a float32 network: true if the network asks for these kernels, the kernels support its
  // first block, and the current device has enough shared memory.
  static bool takes(const Network& network);

  void forward() override;
  void tangent() override;
  void backward() override;

 private:
  FirstLayerShape shape() const { return shape_of(call_.network, call_.batch, call_.trajectories); }
  static FirstLayerShape shape_of(const Network& network, int64_t batch, int64_t trajectories);
  FirstLayerInputs inputs() const;
  FirstLayerTangents tangents() const;
  // Memory for the shares of the gradients, which are added up later: the images' in `grad_images`,
  // unless add_squares() does that.
  FirstLayerShares shares(const OptionalTensor& grad_images) const;
  Tensor image_shares() const;
  // Adds up the shares of the images' gradient if a plane has several squares.
  void add_squares(const Tensor& grad_images) const;
};

}  // namespace trajmatch
