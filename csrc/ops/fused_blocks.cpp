#include "ops/fused_blocks.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "ops/run.h"

// A build without CUDA has no launchers, and never comes here.
#ifdef TRAJMATCH_WITH_CUDA
#define TM_LAUNCH_FUSED(launcher, ...) cuda::launcher(__VA_ARGS__, Device(like_).stream())
#else
#define TM_LAUNCH_FUSED(launcher, ...) missing(#launcher, __VA_ARGS__)
#endif

namespace trajmatch {

namespace {

#ifndef TRAJMATCH_WITH_CUDA
template <class Params>
[[noreturn]] void missing(const char* launcher, const Params&) {
  throw std::logic_error(std::string("trajmatch: ") + launcher + " needs a build with CUDA");
}
#endif

using Pairs = std::vector<std::pair<Tensor, Tensor>>;

std::string chosen_blocks() {
  const char* const text = std::getenv("TRAJMATCH_CUDA_BLOCKS");
  const std::string choice = text == nullptr ? "library" : text;
  for (const char* const known : {"library", "first", "float32", "tf32"}) {
    if (choice == known) return choice;
  }
  throw std::invalid_argument(
      "TRAJMATCH_CUDA_BLOCKS must be library, first, float32 or tf32, but is '" + choice + "'");
}

bool is_plain(const Network& network, const Block& block) {
  return network.norm == Norm::kInstance && block.shape.activation == Activation::kRelu &&
         block.shape.pooling == Pooling::kAverage;
}

}  // namespace

FusedBlocks::FusedBlocks(const Network& network, Workspace& workspace, const Tensor& like)
    : network_(network),
      workspace_(workspace),
      like_(like),
      takes_(network.blocks.size()),
      states_(network.blocks.size()) {
  const std::string choice = chosen_blocks();
  if (choice == "library" || like.scalar_type() != ScalarType::Float) return;
  if (choice == "tf32") {
    kind_ = ProductKind::kTf32;
    forward_kind_ = network.precise ? ProductKind::kTf32x3 : ProductKind::kTf32;
  }
  for (size_t i = 0; i < takes_.size(); ++i) {
    const Block& block = network.blocks[i];
    if (i > 0 && choice == "first") break;
    takes_[i] = is_plain(network, block) &&
                (i == 0 ? first_shape().fits() : block.padding == 1 && deep_shape(i).fits());
  }
}

Tensor FusedBlocks::forward(size_t index, const Tensor& theta, const Tensor& input) {
  State& state = states_[index];
  batch_ = input.size(0);
  state.input = input;
  state.mean = statistics("fused_mean", index);
  state.rstd = statistics("fused_rstd", index);
  const Tensor out = output("fused_output", index);
  if (index == 0) {
    TM_LAUNCH_FUSED(launch_first_layer_forward,
                    FirstLayerForward{first_inputs(theta), write<float>(out),
                                      write<float>(state.mean), write<float>(state.rstd)});
    return out;
  }
  state.y = like_y("fused_y", index);
  const Tensor weight = packed("fused_weight", index, theta, false, forward_kind_);
  TM_LAUNCH_FUSED(launch_fused_block_forward,
                  FusedBlockForward{convolution(index, forward_kind_, {{input, weight}}, state.y),
                                    deep_norm(index, theta), write<float>(out),
                                    write<float>(state.mean), write<float>(state.rstd)});
  return out;
}

Tensor FusedBlocks::tangent(size_t index, const Tensor& theta, const Tensor& theta_tangent,
                            const OptionalTensor& input_tangent) {
  State& state = states_[index];
  state.mean_tangent = statistics("fused_mean_tangent", index);
  state.projection = statistics("fused_projection", index);
  const Tensor out = output("fused_output_tangent", index);
  if (index == 0) {
    TM_LAUNCH_FUSED(
        launch_first_layer_tangent,
        FirstLayerTangent{first_inputs(theta), first_tangents(theta_tangent), write<float>(out),
                          write<float>(state.mean_tangent), write<float>(state.projection)});
    return out;
  }
  state.input_tangent = *input_tangent;
  state.y_tangent = like_y("fused_y_tangent", index);
  const Pairs terms{
      {*input_tangent, packed("fused_weight_again", index, theta, false, kind_)},
      {state.input, packed("fused_weight_tangent", index, theta_tangent, false, kind_)}};
  const auto tangents = places(index, theta_tangent);
  TM_LAUNCH_FUSED(
      launch_fused_block_tangent,
      FusedBlockTangent{convolution(index, kind_, terms, state.y_tangent), deep_norm(index, theta),
                        tangents.norm_weight, tangents.norm_bias, read<float>(state.y),
                        read<float>(state.mean), read<float>(state.rstd), write<float>(out),
                        write<float>(state.mean_tangent), write<float>(state.projection)});
  return out;
}

OptionalTensor FusedBlocks::backward(size_t index, const Tensor& theta, const Tensor& grad_output,
                                     const Tensor& grad_theta, bool wants_input) {
  const State& state = states_[index];
  clear_bias(index, grad_theta);
  if (index == 0) {
    OptionalTensor grad_images;
    if (wants_input) grad_images = like_input("fused_grad_images", 0);
    TM_LAUNCH_FUSED(launch_first_layer_backward,
                    FirstLayerBackward{first_inputs(theta), read<float>(state.mean),
                                       read<float>(state.rstd), read<float>(grad_output),
                                       first_gradients(grad_theta, grad_images, false)});
    return grad_images;
  }
  const Tensor grad_y = like_y("fused_grad_y", index);
  const auto own = places(index, theta);
  const auto grads = gradient_places(index, grad_theta);
  const Tensor partial =
      workspace_.contiguous("fused_affine", 0, {batch_, 2, network_.width}, like_);
  run(NormActPoolBackward<float>{network_.blocks[index].shape_of(batch_), read<float>(state.y),
                                 own.norm_weight, own.norm_bias, read<float>(state.mean),
                                 read<float>(state.rstd), read<float>(grad_output),
                                 write<float>(grad_y), write<float>(partial), grads.norm_weight,
                                 grads.norm_bias},
      Device(like_));
  weight_gradient(index, {{state.input, grad_y}}, grad_theta);
  return turned("fused_grad_input", index, {{grad_y, theta}});
}

std::pair<OptionalTensor, Tensor> FusedBlocks::backward_tangent(size_t index, const Tensor& theta,
                                                                const Tensor& theta_tangent,
                                                                const Tensor& grad_output,
                                                                const Tensor& grad_output_tangent,
                                                                const Tensor& grad_theta_tangent) {
  const State& state = states_[index];
  clear_bias(index, grad_theta_tangent);
  if (index == 0) {
    const Tensor grad_images = like_input("fused_grad_images", 0);
    TM_LAUNCH_FUSED(
        launch_first_layer_backward_tangent,
        FirstLayerBackwardTangent{first_inputs(theta), first_tangents(theta_tangent),
                                  read<float>(state.mean_tangent), read<float>(state.projection),
                                  read<float>(grad_output), read<float>(grad_output_tangent),
                                  first_gradients(grad_theta_tangent, grad_images, true)});
    return {std::nullopt, grad_images};
  }
  const Tensor grad_y = like_y("fused_grad_y", index);
  const Tensor grad_y_tangent = like_y("fused_grad_y_tangent", index);
  const auto own = places(index, theta), tangents = places(index, theta_tangent);
  const auto grads = gradient_places(index, grad_theta_tangent);
  const Tensor partial =
      workspace_.contiguous("fused_affine", 0, {batch_, 2, network_.width}, like_);
  run(
      NormActPoolBackwardTangent<float>{
          network_.blocks[index].shape_of(batch_), read<float>(state.y), own.norm_weight,
          own.norm_bias, read<float>(state.mean), read<float>(state.rstd),
          read<float>(state.y_tangent), tangents.norm_weight, tangents.norm_bias,
          read<float>(state.mean_tangent), read<float>(state.projection), read<float>(grad_output),
          read<float>(grad_output_tangent), write<float>(grad_y), write<float>(grad_y_tangent),
          write<float>(partial), grads.norm_weight, grads.norm_bias},
      Device(like_));
  weight_gradient(index, {{state.input, grad_y_tangent}, {state.input_tangent, grad_y}},
                  grad_theta_tangent);
  return {turned("fused_grad_input", index, {{grad_y, theta}}),
          turned("fused_grad_input_tangent", index,
                 {{grad_y_tangent, theta}, {grad_y, theta_tangent}})};
}

// What both kinds of block need.

template <class T>
FusedBlocks::Places<T> FusedBlocks::places_from(size_t index, T* first) const {
  const Block& block = network_.blocks[index];
  return {first + block.weight.offset, first + block.norm_weight.offset,
          first + block.norm_bias.offset};
}

FusedBlocks::Places<const float> FusedBlocks::places(size_t index, const Tensor& parameters) const {
  return places_from(index, read<float>(parameters));
}

FusedBlocks::Places<float> FusedBlocks::gradient_places(size_t index,
                                                        const Tensor& gradient) const {
  return places_from(index, write<float>(gradient));
}

// The bias of a convolution moves nothing before an instance norm.
void FusedBlocks::clear_bias(size_t index, const Tensor& grad_theta) const {
  const Slice& slice = network_.blocks[index].bias;
  Tensor bias = vector_view(grad_theta, slice.offset, slice.size);
  torch::stable::zero_(bias);
}

Tensor FusedBlocks::statistics(const char* name, size_t index) {
  return workspace_.contiguous(name, index, {batch_, network_.width}, like_);
}

Tensor FusedBlocks::output(const char* name, size_t index) {
  const NormActPoolShape& shape = network_.blocks[index].shape;
  return workspace_.channels_last(
      name, index, {batch_, network_.width, shape.out_height(), shape.out_width()}, like_);
}

Tensor FusedBlocks::like_input(const char* name, size_t index) {
  const Block& block = network_.blocks[index];
  return workspace_.channels_last(name, index,
                                  {batch_, block.in_channels, block.in_size, block.in_size}, like_);
}

Tensor FusedBlocks::like_y(const char* name, size_t index) {
  const NormActPoolShape& shape = network_.blocks[index].shape;
  return workspace_.channels_last(name, index, {batch_, network_.width, shape.height, shape.width},
                                  like_);
}

// The first block.

FirstLayerShape FusedBlocks::first_shape() const {
  const Block& block = network_.blocks[0];
  return {1,
          batch_,
          block.in_size,
          block.in_channels,
          block.padding,
          network_.width,
          network_.num_parameters,
          block.shape.eps};
}

FirstLayerInputs FusedBlocks::first_inputs(const Tensor& theta) const {
  const auto own = places(0, theta);
  return {first_shape(), read<float>(states_[0].input), own.weight, own.norm_weight, own.norm_bias};
}

FirstLayerTangents FusedBlocks::first_tangents(const Tensor& theta_tangent) const {
  const auto tangents = places(0, theta_tangent);
  return {read<float>(states_[0].mean), read<float>(states_[0].rstd), tangents.weight,
          tangents.norm_weight, tangents.norm_bias};
}

FirstLayerGradients FusedBlocks::first_gradients(const Tensor& grad_theta,
                                                 const OptionalTensor& grad_images, bool tangent) {
  const FirstLayerShape shape = first_shape();
  const auto grads = gradient_places(0, grad_theta);
  const Tensor affine =
      workspace_.contiguous("fused_affine", 0, {batch_, 2, shape.channels}, like_);
  const Tensor weight =
      workspace_.contiguous("fused_first_weight", 0, {batch_, shape.channels, shape.taps()}, like_);
  OptionalTensor images;
  if (grad_images) {
    images = workspace_.contiguous("fused_first_images", 0,
                                   {shape.tiles(tangent), batch_, shape.image_size()}, like_);
  }
  return {write<float>(affine), write<float>(weight), write<float>(images),     grads.weight,
          grads.norm_weight,    grads.norm_bias,      write<float>(grad_images)};
}

// The blocks behind it.

FusedConvolutionShape FusedBlocks::deep_shape(size_t index) const {
  return {1, batch_, network_.blocks[index].in_size, network_.width};
}

FusedNorm FusedBlocks::deep_norm(size_t index, const Tensor& theta) const {
  const auto own = places(index, theta);
  return {network_.num_parameters, static_cast<float>(network_.blocks[index].shape.eps),
          own.norm_weight, own.norm_bias};
}

Tensor FusedBlocks::packed(const char* name, size_t index, const Tensor& parameters, bool turned,
                           ProductKind kind) {
  const FusedConvolutionShape shape = deep_shape(index);
  const Tensor result = workspace_.contiguous(name, index, {shape.weight_size()}, like_);
  TM_LAUNCH_FUSED(launch_pack_convolution,
                  PackConvolution{shape, network_.num_parameters, turned, kind,
                                  places(index, parameters).weight, write<float>(result)});
  return result;
}

FusedConvolution FusedBlocks::convolution(size_t index, ProductKind kind, const Pairs& terms,
                                          const Tensor& y) const {
  const FusedConvolutionShape shape = deep_shape(index);
  FusedConvolution result{
      shape, kind, shape.tile_channels(), static_cast<int>(terms.size()), {}, write<float>(y)};
  for (size_t i = 0; i < terms.size(); ++i) {
    result.term[i] = {read<float>(terms[i].first), read<float>(terms[i].second)};
  }
  return result;
}

void FusedBlocks::weight_gradient(size_t index, const Pairs& pairs, const Tensor& grad_theta) {
  const FusedConvolutionShape shape = deep_shape(index);
  const int64_t splits = FusedConvolutionWeight::splits_of(shape);
  const int64_t shares = splits * FusedConvolutionWeight::parts(shape.channels);
  const Tensor partial =
      workspace_.contiguous("fused_weight_shares", 0, {shares, shape.weight_size()}, like_);
  FusedConvolutionWeight params{shape,
                                kind_,
                                splits,
                                static_cast<int>(pairs.size()),
                                {},
                                write<float>(partial),
                                gradient_places(index, grad_theta).weight,
                                network_.num_parameters};
  for (size_t i = 0; i < pairs.size(); ++i) {
    params.pair[i] = {read<float>(pairs[i].first), read<float>(pairs[i].second)};
  }
  TM_LAUNCH_FUSED(launch_fused_convolution_weight, params);
}

// The sum of the gradients in the input, each from a gradient in y and parameters.
Tensor FusedBlocks::turned(const char* name, size_t index, const Pairs& grads_and_parameters) {
  constexpr const char* kNames[] = {"fused_turned", "fused_turned_second"};
  Pairs terms;
  for (size_t i = 0; i < grads_and_parameters.size(); ++i) {
    const auto& [grad, parameters] = grads_and_parameters[i];
    terms.emplace_back(grad, packed(kNames[i], index, parameters, true, kind_));
  }
  const Tensor result = like_input(name, index);
  TM_LAUNCH_FUSED(launch_fused_convolution, convolution(index, kind_, terms, result));
  return result;
}

}  // namespace trajmatch
