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

#ifdef TRAJMATCH_WITH_CUDA
using cuda::first_layer_fits_device;
using cuda::fused_convolution_fits_device;
#else
bool first_layer_fits_device(const FirstLayerShape&) { return true; }
bool fused_convolution_fits_device(const FusedConvolutionShape&, ProductKind, ProductKind) {
  return true;
}

template <class Params>
[[noreturn]] void missing(const char* launcher, const Params&) {
  throw std::logic_error(std::string("trajmatch: ") + launcher + " needs a build with CUDA");
}
#endif

std::string chosen_blocks() {
  const char* const text = std::getenv("TRAJMATCH_CUDA_BLOCKS");
  const std::string choice = text == nullptr ? "first" : text;
  for (const char* const known : {"library", "first", "float32", "tf32", "fp16"}) {
    if (choice == known) return choice;
  }
  throw std::invalid_argument(
      "TRAJMATCH_CUDA_BLOCKS must be library, first, float32, tf32 or fp16, but is '" + choice +
      "'");
}

const float* in_kind(ProductKind kind, const Tensor& values, const OptionalTensor& halves) {
  return kind == ProductKind::kFp16 ? read<float>(halves) : read<float>(values);
}

bool is_plain(const Network& network, const Block& block) {
  return network.is_convnet && network.norm == Norm::kInstance &&
         block.shape.activation == Activation::kRelu && block.shape.pooling == Pooling::kAverage;
}

FirstLayerShape first_shape_of(const Network& network, int64_t batch) {
  const Block& block = network.blocks[0];
  return {1,
          batch,
          block.in_size,
          block.in_channels,
          block.padding,
          network.width,
          network.num_parameters,
          block.shape.eps};
}

}  // namespace

bool FusedBlocks::takes_first(const Network& network, bool float32) {
  if (!float32 || chosen_blocks() == "library" || !is_plain(network, network.blocks[0])) {
    return false;
  }
  const FirstLayerShape shape = first_shape_of(network, 0);
  return shape.fits() && first_layer_fits_device(shape);
}

FusedBlocks::FusedBlocks(const Network& network, Workspace& workspace, const Tensor& like)
    : network_(network),
      workspace_(workspace),
      like_(like),
      takes_(network.blocks.size()),
      states_(network.blocks.size()) {
  const std::string choice = chosen_blocks();
  if (choice == "library" || like.scalar_type() != ScalarType::Float) return;
  takes_[0] = takes_first(network, true);
  if (choice == "tf32" || choice == "fp16") {
    kind_ = choice == "tf32" ? ProductKind::kTf32 : ProductKind::kFp16;
    forward_kind_ = network.precise ? ProductKind::kTf32x3 : kind_;
  }
  for (size_t i = 1; i < takes_.size() && choice != "first"; ++i) {
    const Block& block = network.blocks[i];
    takes_[i] = is_plain(network, block) && block.padding == 1 && deep_shape(i).fits() &&
                fused_convolution_fits_device(deep_shape(i), forward_kind_, kind_);
  }
}

void FusedBlocks::begin(size_t index, const Tensor& theta, const Tensor& input,
                        const KeptBlock& kept) {
  State& state = states_[index];
  batch_ = input.size(0);
  state.kept = kept;
  state.input = activation("fused_input", index, input);
  if (index == 0) return;
  state.weight = weight("fused_weight", index, theta);
  scale(index, {state.input}, {state.weight});
}

void FusedBlocks::forward(size_t index, const Tensor& theta) {
  const State& state = states_[index];
  const KeptBlock& kept = state.kept;
  if (index == 0) {
    TM_LAUNCH_FUSED(launch_first_layer_forward,
                    FirstLayerForward{first_inputs(theta), write<float>(kept.output),
                                      write<float>(kept.mean), write<float>(kept.rstd)});
    return;
  }
  const Packed packed_weight = packed("fused_packed", index, state.weight, false, forward_kind_);
  TM_LAUNCH_FUSED(
      launch_fused_block_forward,
      FusedBlockForward{convolution(index, forward_kind_, {{state.input, packed_weight}}, kept.y),
                        deep_norm(index, theta), write<float>(kept.output), write<float>(kept.mean),
                        write<float>(kept.rstd)});
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
  state.input_tangent = activation("fused_input_tangent", index, *input_tangent);
  state.weight_tangent = weight("fused_weight_tangent", index, theta_tangent);
  scale(index, {state.input_tangent}, {state.weight_tangent});
  state.y_tangent = like_y("fused_y_tangent", index);
  const std::vector<Term> terms{
      {state.input_tangent, packed("fused_packed_again", index, state.weight, false, kind_)},
      {state.input, packed("fused_packed_tangent", index, state.weight_tangent, false, kind_)}};
  const auto tangents = places(index, theta_tangent);
  TM_LAUNCH_FUSED(launch_fused_block_tangent,
                  FusedBlockTangent{
                      convolution(index, kind_, terms, state.y_tangent), deep_norm(index, theta),
                      tangents.norm_weight, tangents.norm_bias, read<float>(state.kept.y),
                      read<float>(state.kept.mean), read<float>(state.kept.rstd), write<float>(out),
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
                    FirstLayerBackward{first_inputs(theta), read<float>(state.kept.mean),
                                       read<float>(state.kept.rstd), read<float>(grad_output),
                                       first_gradients(grad_theta, grad_images, false)});
    return grad_images;
  }
  const Tensor grad_y = like_y("fused_grad_y", index);
  const auto own = places(index, theta);
  const auto grads = gradient_places(index, grad_theta);
  const Tensor partial =
      workspace_.contiguous("fused_affine", 0, {batch_, 2, network_.width}, like_);
  run(NormActPoolBackward<float>{network_.blocks[index].shape_of(batch_), read<float>(state.kept.y),
                                 own.norm_weight, own.norm_bias, read<float>(state.kept.mean),
                                 read<float>(state.kept.rstd), read<float>(grad_output),
                                 write<float>(grad_y), write<float>(partial), grads.norm_weight,
                                 grads.norm_bias},
      Device(like_));
  const Operand grad = activation("fused_grad", index, grad_y);
  scale(index, {grad}, {});
  weight_gradient(index, {{state.input, grad}}, grad_theta);
  return turned("fused_grad_input", index, {{grad, state.weight}});
}

std::pair<OptionalTensor, Tensor> FusedBlocks::backward_tangent(
    size_t index, const Tensor& theta, const Tensor& theta_tangent, const Tensor& grad_output,
    const Tensor& grad_output_tangent, const Tensor& grad_theta_tangent, bool wants_input) {
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
          network_.blocks[index].shape_of(batch_), read<float>(state.kept.y), own.norm_weight,
          own.norm_bias, read<float>(state.kept.mean), read<float>(state.kept.rstd),
          read<float>(state.y_tangent), tangents.norm_weight, tangents.norm_bias,
          read<float>(state.mean_tangent), read<float>(state.projection), read<float>(grad_output),
          read<float>(grad_output_tangent), write<float>(grad_y), write<float>(grad_y_tangent),
          write<float>(partial), grads.norm_weight, grads.norm_bias},
      Device(like_));
  const Operand grad = activation("fused_grad", index, grad_y);
  const Operand grad_tangent = activation("fused_grad_tangent", index, grad_y_tangent);
  scale(index, {grad, grad_tangent}, {});
  weight_gradient(index, {{state.input, grad_tangent}, {state.input_tangent, grad}},
                  grad_theta_tangent);
  OptionalTensor grad_input;
  if (wants_input) grad_input = turned("fused_grad_input", index, {{grad, state.weight}});
  return {grad_input, turned("fused_grad_input_tangent", index,
                             {{grad_tangent, state.weight}, {grad, state.weight_tangent}})};
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

FirstLayerShape FusedBlocks::first_shape() const { return first_shape_of(network_, batch_); }

FirstLayerInputs FusedBlocks::first_inputs(const Tensor& theta) const {
  const auto own = places(0, theta);
  return {first_shape(), read<float>(states_[0].input.values), own.weight, own.norm_weight,
          own.norm_bias};
}

FirstLayerTangents FusedBlocks::first_tangents(const Tensor& theta_tangent) const {
  const auto tangents = places(0, theta_tangent);
  return {read<float>(states_[0].kept.mean), read<float>(states_[0].kept.rstd), tangents.weight,
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

FusedBlocks::Operand FusedBlocks::activation(const char* name, size_t index, const Tensor& values) {
  Operand result{values, {}, {}};
  if (kind_ == ProductKind::kFp16 && index > 0) {
    const std::string stem = name;
    const int64_t size = batch_ * deep_shape(index).image_size();
    result.halves = workspace_.contiguous((stem + "_halves").c_str(), index, {size / 2}, like_);
    result.magnitudes =
        workspace_.contiguous((stem + "_magnitudes").c_str(), index, {kMagnitudes}, like_);
  }
  return result;
}

FusedBlocks::Operand FusedBlocks::weight(const char* name, size_t index, const Tensor& parameters) {
  Operand result{parameters, {}, {}};
  if (kind_ == ProductKind::kFp16) {
    result.magnitudes = workspace_.contiguous(name, index, {kMagnitudes}, like_);
  }
  return result;
}

void FusedBlocks::scale(size_t index, const std::vector<Operand>& activations,
                        const std::vector<Operand>& weights) const {
  if (kind_ != ProductKind::kFp16) return;
  const FusedConvolutionShape shape = deep_shape(index);
  const int64_t size = batch_ * shape.image_size();
  MeasureMagnitudes measure{{}, 0, 1};
  RoundToHalf round{{}, 0, 1, size};
  for (const Operand& one : activations) {
    const float* const x = read<float>(one.values);
    measure.each[measure.count++] = {x, size, size, write<float>(one.magnitudes)};
    round.each[round.count++] = {x, read<float>(one.magnitudes), write<float>(one.halves)};
  }
  for (const Operand& one : weights) {
    measure.each[measure.count++] = {places(index, one.values).weight, shape.weight_size(),
                                     network_.num_parameters, write<float>(one.magnitudes)};
  }
  TM_LAUNCH_FUSED(launch_measure_magnitudes, measure);
  TM_LAUNCH_FUSED(launch_round_to_half, round);
}

FusedBlocks::Packed FusedBlocks::packed(const char* name, size_t index, const Operand& weight,
                                        bool turned, ProductKind kind) {
  const FusedConvolutionShape shape = deep_shape(index);
  const Tensor result =
      workspace_.contiguous(name, index, {PackConvolution::packed_size(shape, kind)}, like_);
  TM_LAUNCH_FUSED(launch_pack_convolution,
                  PackConvolution{shape, network_.num_parameters, turned, kind,
                                  places(index, weight.values).weight, write<float>(result),
                                  read<float>(weight.magnitudes)});
  return {result, weight.magnitudes};
}

FusedConvolution FusedBlocks::convolution(size_t index, ProductKind kind,
                                          const std::vector<Term>& terms, const Tensor& y) const {
  const FusedConvolutionShape shape = deep_shape(index);
  FusedConvolution result{
      shape, kind, shape.tile_channels(), static_cast<int>(terms.size()), {}, write<float>(y)};
  for (size_t i = 0; i < terms.size(); ++i) {
    const auto& [x, weight] = terms[i];
    result.term[i] = {in_kind(kind, x.values, x.halves), read<float>(weight.values),
                      read<float>(x.magnitudes), read<float>(weight.magnitudes)};
  }
  return result;
}

void FusedBlocks::weight_gradient(size_t index,
                                  const std::vector<std::pair<Operand, Operand>>& pairs,
                                  const Tensor& grad_theta) {
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
    const auto& [x, grad_y] = pairs[i];
    params.pair[i] = {in_kind(kind_, x.values, x.halves),
                      in_kind(kind_, grad_y.values, grad_y.halves), read<float>(x.magnitudes),
                      read<float>(grad_y.magnitudes)};
  }
  TM_LAUNCH_FUSED(launch_fused_convolution_weight, params);
}

// The sum of the gradients in the input, each from a gradient in y and a weight.
Tensor FusedBlocks::turned(const char* name, size_t index,
                           const std::vector<std::pair<Operand, Operand>>& grads_and_weights) {
  constexpr const char* kNames[] = {"fused_turned", "fused_turned_second"};
  std::vector<Term> terms;
  for (size_t i = 0; i < grads_and_weights.size(); ++i) {
    const auto& [grad, weight] = grads_and_weights[i];
    terms.push_back({grad, packed(kNames[i], index, weight, true, kind_)});
  }
  const Tensor result = like_input(name, index);
  TM_LAUNCH_FUSED(launch_fused_convolution, convolution(index, kind_, terms, result));
  return result;
}

}  // namespace trajmatch
