// The first block as one kernel a pass (core/first_layer.h), which compute the convolution's output
// anew.
#pragma once

#include "core/first_layer.h"
#include "ops/fused_block.h"

namespace trajmatch {

class FirstBlock : public FusedBlock {
 public:
  explicit FirstBlock(LayerCall& call) : FusedBlock(call, 0) {}

  // True if a network in float32 has their shape and asks for them, and the current device has the
  // shared memory that they need.
  static bool takes(const Network& network);

  void forward() override;
  void tangent() override;
  void backward() override;

 private:
  FirstLayerShape shape() const { return shape_of(call_.network, call_.batch); }
  static FirstLayerShape shape_of(const Network& network, int64_t batch);
  FirstLayerInputs inputs() const;
  FirstLayerTangents tangents() const;
  FirstLayerGradients gradients(const OptionalTensor& grad_images) const;
};

}  // namespace trajmatch
