#include "ops/first_block.h"

namespace trajmatch {

#ifdef TRAJMATCH_WITH_CUDA
using cuda::first_layer_fits_device;
#else
static bool first_layer_fits_device(const FirstLayerShape&) { return true; }
#endif

bool FirstBlock::takes(const Network& network) {
  if (network.fused == FusedKernels::kNone || network.blocks.empty() ||
      !is_usual(network.blocks[0])) {
    return false;
  }
  const FirstLayerShape shape = shape_of(network, 0, 1);
  return shape.fits() && first_layer_fits_device(shape);
}

FirstLayerShape FirstBlock::shape_of(const Network& network, int64_t batch, int64_t trajectories) {
  const auto& [convolution, norm] = network.blocks[0];
  return {trajectories,           batch,
          convolution.in_size,    convolution.in_channels,
          convolution.padding,    convolution.channels,
          network.num_parameters, norm.shape.eps};
}

void FirstBlock::forward() {
  const Value& to = made();
  TM_LAUNCH_FUSED(launch_first_layer_forward,
                  FirstLayerForward{inputs(), write<float>(to.data), write<float>(to.mean),
                                    write<float>(to.rstd), call_.rounds_of(out_).data});
}

void FirstBlock::tangent() {
  mean_tangent_ = statistics("mean_tangent");
  projection_ = statistics("projection");
  const Tensor out = call_.place("tangent", out_);
  TM_LAUNCH_FUSED(
      launch_first_layer_tangent,
      FirstLayerTangent{inputs(), tangents(), write<float>(out), write<float>(mean_tangent_),
                        write<float>(projection_), call_.rounds_of(out_).tangent});
  call_.values[out_].tangent = out;
}

void FirstBlock::backward() {
  const Value& from = call_.values[out_];
  clear_bias();
  if (call_.is_jvp) {
    const Tensor grad_images = call_.grad_tangent_place(0);
    TM_LAUNCH_FUSED(launch_first_layer_backward_tangent,
                    FirstLayerBackwardTangent{inputs(), tangents(), read<float>(mean_tangent_),
                                              read<float>(projection_), read<float>(from.grad),
                                              read<float>(from.grad_tangent), shares(grad_images)});
    add_squares(grad_images);
    call_.add_grad_tangent(0, grad_images);
    return;
  }
  OptionalTensor grad_images;
  if (call_.wants_grad(0)) grad_images = call_.grad_place(0);
  TM_LAUNCH_FUSED(launch_first_layer_backward,
                  FirstLayerBackward{inputs(), read<float>(from.mean), read<float>(from.rstd),
                                     read<float>(from.grad), shares(grad_images)});
  if (!grad_images) return;
  add_squares(*grad_images);
  call_.add_grad(0, *grad_images);
}

FirstLayerInputs FirstBlock::inputs() const {
  const FirstLayerShape sizes = shape();
  const auto own = places(call_.theta);
  OptionalTensor sums;
  if (sizes.squares() > 1) {
    sums = call_.workspace.contiguous(
        "first_sums", 0, {call_.images(), sizes.squares(), 4 * sizes.channels}, call_.like);
  }
  return {sizes,         read<float>(call_.values[in_].data),
          own.weight,    own.norm_weight,
          own.norm_bias, write<float>(sums)};
}

FirstLayerTangents FirstBlock::tangents() const {
  const Value& value = call_.values[out_];
  const auto own = places(*call_.theta_tangent);
  return {read<float>(value.mean), read<float>(value.rstd), own.weight, own.norm_weight,
          own.norm_bias};
}

FirstLayerShares FirstBlock::shares(const OptionalTensor& grad_images) const {
  const FirstLayerShape sizes = shape();
  const auto grads = gradient_places();
  const Tensor weight = call_.workspace.contiguous(
      "first_weight", 0, {call_.images() * sizes.squares(), sizes.channels, sizes.taps()},
      call_.like);
  OptionalTensor images;
  if (grad_images) images = image_shares();
  const FirstLayerShares shares{write<float>(partial_affine()), write<float>(weight),
                                write<float>(images)};
  call_.sum_later(shares.sum_affine(sizes, 0, grads.norm_weight));
  call_.sum_later(shares.sum_affine(sizes, 1, grads.norm_bias));
  call_.sum_later(shares.sum_weight(sizes, grads.weight));
  if (grad_images && sizes.squares() == 1) {
    call_.sum_later(shares.sum_images(sizes, call_.is_jvp, write<float>(*grad_images)));
  }
  return shares;
}

Tensor FirstBlock::image_shares() const {
  const FirstLayerShape sizes = shape();
  return call_.workspace.contiguous(
      "first_images", 0, {sizes.tiles(call_.is_jvp), call_.images(), sizes.image_share()},
      call_.like);
}

void FirstBlock::add_squares(const Tensor& grad_images) const {
  const FirstLayerShape sizes = shape();
  if (sizes.squares() == 1) return;
  TM_LAUNCH_FUSED(launch_first_layer_squares,
                  FirstLayerSquares{sizes, read<float>(image_shares()), sizes.tiles(call_.is_jvp),
                                    write<float>(grad_images)});
}

}  // namespace trajmatch
