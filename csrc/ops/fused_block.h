// The base class of blocks with their own CUDA kernels. One layer (ops/layer.h) runs a convolution
// with the instance norm, ReLU and average pooling after it, in float32.
#pragma once

#include <stdexcept>
#include <string>

#include "ops/layer.h"
#include "ops/run.h"

// A build without CUDA has no launchers and never calls them. TM_LAUNCH_BESIDE launches on the side
// stream of the call; the caller holds the Device.
#ifdef TRAJMATCH_WITH_CUDA
#define TM_LAUNCH_FUSED(launcher, ...) cuda::launcher(__VA_ARGS__, Device(call_.like).stream())
#define TM_LAUNCH_BESIDE(launcher, ...) cuda::launcher(__VA_ARGS__, call_.fork())
#else
#define TM_LAUNCH_FUSED(launcher, ...) missing(#launcher, __VA_ARGS__)
#define TM_LAUNCH_BESIDE(launcher, ...) missing(#launcher, __VA_ARGS__)
#endif

namespace trajmatch {

#ifndef TRAJMATCH_WITH_CUDA
template <class Params>
[[noreturn]] void missing(const char* launcher, const Params&) {
  throw std::logic_error(std::string("trajmatch: ") + launcher + " needs a build with CUDA");
}
#endif

class FusedBlock : public Layer {
 public:
  FusedBlock(LayerCall& call, size_t index)
      : call_(call),
        block_(call.network.blocks[index]),
        channels_(block_.convolution.channels),
        in_(2 * index),
        out_(2 * index + 2) {}

 protected:
  // True if the block has what all fused kernels expect: an affine instance norm, ReLU and average
  // pooling.
  static bool is_usual(const Block& block) {
    const NormActPoolNode& norm = block.norm;
    return norm.centres_channels() && norm.weight.size > 0 &&
           norm.shape.activation == Activation::kRelu && norm.shape.pooling == Pooling::kAverage;
  }

  // Pointers into theta, its tangent, or a gradient, of the first trajectory.
  template <class T>
  struct Places {
    T *weight, *norm_weight, *norm_bias;
  };
  Places<const float> places(const Tensor& parameters) const {
    return places_from(read<float>(parameters));
  }
  Places<float> gradient_places() const { return places_from(write<float>(call_.grad_theta)); }

  // The bias of a convolution has no effect before an instance norm, so its gradient is 0.
  void clear_bias() const { call_.clear_later<float>(block_.convolution.bias); }
  Tensor statistics(const char* name) const {
    return call_.workspace.contiguous(name, out_, {call_.images(), channels_}, call_.like);
  }
  Tensor partial_affine() const {
    return call_.workspace.contiguous("partial", out_, {call_.images(), 2, channels_}, call_.like);
  }
  // The value that the block makes, with memory for its data and statistics.
  Value& made() {
    Value& value = call_.values[out_];
    value.data = call_.data_place(out_);
    if (!value.mean.defined()) {
      value.mean = statistics("mean");
      value.rstd = statistics("rstd");
    }
    return value;
  }

  LayerCall& call_;
  const Block& block_;
  const int64_t channels_;
  const size_t in_, out_;
  Tensor mean_tangent_, projection_;

 private:
  template <class T>
  Places<T> places_from(T* first) const {
    return {first + block_.convolution.weight.offset, first + block_.norm.weight.offset,
            first + block_.norm.bias.offset};
  }
};

}  // namespace trajmatch
