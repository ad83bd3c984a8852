#include "ops/deep_block.h"

#include <string>

namespace trajmatch {

namespace {

#ifdef TRAJMATCH_WITH_CUDA
using cuda::fused_convolution_fits_device;
#else
bool fused_convolution_fits_device(const FusedConvolutionShape&, ProductKind, ProductKind) {
  return true;
}
#endif

// Returns the operand that products of this kind read: for kTf32x3 the values, otherwise the
// rounded copy if there is one.
const float* in_kind(ProductKind kind, const Tensor& values, const OptionalTensor& rounded) {
  return kind != ProductKind::kTf32x3 && rounded ? read<float>(rounded) : read<float>(values);
}

}  // namespace

auto DeepBlock::kinds_of(const Network& network) -> Kinds {
  const ProductKind kind =
      network.fused == FusedKernels::kFp16 ? ProductKind::kFp16 : ProductKind::kTf32;
  return {network.precise ? ProductKind::kTf32x3 : kind, kind};
}

bool DeepBlock::takes(const Network& network, size_t index) {
  if (network.fused == FusedKernels::kNone || network.fused == FusedKernels::kFirst) return false;
  const Block& block = network.blocks[index];
  // An H200 ran an outer iteration faster with these blocks at width 32, and slower at width 128
  // (docs/performance.md).
  constexpr int64_t kMostChannels = 64;
  if (network.fused == FusedKernels::kAuto && block.convolution.channels > kMostChannels) {
    return false;
  }
  const Kinds kinds = kinds_of(network);
  const FusedConvolutionShape shape = shape_of(block, 0, 1);
  return is_usual(block) && block.convolution.padding == 1 &&
         block.convolution.in_channels == block.convolution.channels && shape.fits() &&
         fused_convolution_fits_device(shape, kinds.forward, kinds.other);
}

DeepBlock::DeepBlock(LayerCall& call, size_t index)
    : FusedBlock(call, index), kinds_(kinds_of(call.network)) {
  const bool tf32 = kinds_.other == ProductKind::kTf32;
  call_.rounds[in_] = {tf32 && kinds_.forward == ProductKind::kTf32, tf32};
}

void DeepBlock::begin() {
  weight_.all = weight("fused_weight", call_.theta);
  const bool runs_forward = !(call_.is_jvp && call_.has_tape);
  if (runs_forward) weight_.forward = packed("fused_packed", weight_.all, false, kinds_.forward);
  weight_.turned = packed("fused_turned", weight_.all, true, kinds_.other);
  if (call_.is_jvp) {
    // The forward pass may use another ProductKind.
    weight_.tangent = runs_forward && kinds_.forward == kinds_.other
                          ? weight_.forward
                          : packed("fused_packed_again", weight_.all, false, kinds_.other);
    weight_tangent_.all = weight("fused_weight_tangent", *call_.theta_tangent);
    weight_tangent_.tangent =
        packed("fused_packed_tangent", weight_tangent_.all, false, kinds_.other);
    weight_tangent_.turned =
        packed("fused_turned_tangent", weight_tangent_.all, true, kinds_.other);
  }
  // Otherwise forward() prepares the input.
  if (!runs_forward) read_input();
}

void DeepBlock::read_input() {
  input_ = activation("fused_input", call_.values[in_].data, call_.rounds_of(in_).data);
  round({input_});
}

void DeepBlock::forward() {
  read_input();
  const Value& to = made();
  TM_LAUNCH_FUSED(launch_fused_block_forward,
                  FusedBlockForward{convolution(kinds_.forward,
                                                {{input_, weight_.forward, weight_.all.magnitudes}},
                                                call_.data_place(out_ - 1)),
                                    norm(), write<float>(to.data), write<float>(to.mean),
                                    write<float>(to.rstd), call_.rounds_of(out_).data});
}

void DeepBlock::tangent() {
  mean_tangent_ = statistics("mean_tangent");
  projection_ = statistics("projection");
  const Tensor out = call_.place("tangent", out_);
  input_tangent_ =
      activation("fused_input_tangent", *call_.values[in_].tangent, call_.rounds_of(in_).tangent);
  round({input_tangent_});
  y_tangent_ = call_.place("tangent", out_ - 1);
  // y' = W * x' + W' * x
  const std::vector<Term> terms{{input_tangent_, weight_.tangent, weight_.all.magnitudes},
                                {input_, weight_tangent_.tangent, weight_tangent_.all.magnitudes}};
  const auto tangents = places(*call_.theta_tangent);
  const Value& to = call_.values[out_];
  TM_LAUNCH_FUSED(
      launch_fused_block_tangent,
      FusedBlockTangent{convolution(kinds_.other, terms, y_tangent_), norm(), tangents.norm_weight,
                        tangents.norm_bias, read<float>(call_.values[out_ - 1].data),
                        read<float>(to.mean), read<float>(to.rstd), write<float>(out),
                        write<float>(mean_tangent_), write<float>(projection_),
                        call_.rounds_of(out_).tangent});
  call_.values[out_].tangent = out;
}

void DeepBlock::backward() {
  const Value &from = call_.values[out_], &y = call_.values[out_ - 1];
  clear_bias();
  const Tensor grad_y = call_.place("grad", out_ - 1);
  const auto own = places(call_.theta);
  const auto grads = gradient_places();
  const NormActPoolShape shape = call_.shape_of(block_.norm);
  const Device device(call_.like);
  float* const partial = write<float>(partial_affine());
  call_.sum_later(shape.affine_sums(partial, grads.norm_weight, grads.norm_bias));
  const bool rounds = kinds_.other == ProductKind::kTf32;
  const Operand grad = activation("fused_grad", grad_y, rounds);
  const Term along_weight{grad, weight_.turned, weight_.all.magnitudes};
  // The norm comes first in the backward pass: it turns the gradient in the output into the one in
  // y, which the weight and input gradients need.
  if (!call_.is_jvp) {
    run(NormActPoolBackward<float>{shape, read<float>(y.data), own.norm_weight, own.norm_bias,
                                   read<float>(from.mean), read<float>(from.rstd),
                                   read<float>(from.grad), write<float>(grad_y), partial, nullptr,
                                   nullptr, nullptr, rounds},
        device);
    round({grad});
    call_.add_grad(in_, input_gradient(call_.grad_place(in_), {along_weight}));
    weight_gradient({{input_, grad}});
    return;
  }
  const Tensor grad_y_tangent = call_.place("grad_tangent", out_ - 1);
  const auto tangents = places(*call_.theta_tangent);
  run(NormActPoolBackwardTangent<float>{shape,
                                        read<float>(y.data),
                                        own.norm_weight,
                                        own.norm_bias,
                                        read<float>(from.mean),
                                        read<float>(from.rstd),
                                        read<float>(y_tangent_),
                                        tangents.norm_weight,
                                        tangents.norm_bias,
                                        read<float>(mean_tangent_),
                                        read<float>(projection_),
                                        read<float>(from.grad),
                                        read<float>(from.grad_tangent),
                                        write<float>(grad_y),
                                        write<float>(grad_y_tangent),
                                        partial,
                                        nullptr,
                                        nullptr,
                                        nullptr,
                                        rounds},
      device);
  const Operand grad_tangent = activation("fused_grad_tangent", grad_y_tangent, rounds);
  round({grad, grad_tangent});
  if (call_.wants_grad(in_)) {
    call_.add_grad(in_, input_gradient(call_.grad_place(in_), {along_weight}));
  }
  // dx' = W^T * dy' + W'^T * dy
  call_.add_grad_tangent(
      in_, input_gradient(call_.grad_tangent_place(in_),
                          {{grad_tangent, weight_.turned, weight_.all.magnitudes},
                           {grad, weight_tangent_.turned, weight_tangent_.all.magnitudes}}));
  // dW' = x * dy' + x' * dy
  weight_gradient({{input_, grad_tangent}, {input_tangent_, grad}});
}

FusedConvolutionShape DeepBlock::shape_of(const Block& block, int64_t batch, int64_t trajectories) {
  return {trajectories, batch, block.convolution.in_size, block.convolution.channels};
}

FusedNorm DeepBlock::norm() const {
  const auto own = places(call_.theta);
  return {call_.network.num_parameters, static_cast<float>(block_.norm.shape.eps), own.norm_weight,
          own.norm_bias};
}

Tensor DeepBlock::magnitudes(const char* name) const {
  return call_.workspace.contiguous(name, out_, {call_.trajectories, kMagnitudes}, call_.like);
}

auto DeepBlock::activation(const char* name, const Tensor& values, bool is_rounded) const
    -> Operand {
  Operand result{values, {}, {}};
  if (is_rounded) return result;
  const std::string stem = name;
  const bool half = kinds_.other == ProductKind::kFp16;
  const int64_t size = call_.images() * shape().image_size() / (half ? 2 : 1);
  result.rounded =
      call_.workspace.contiguous((stem + "_rounded").c_str(), out_, {size}, call_.like);
  if (half) result.magnitudes = magnitudes((stem + "_magnitudes").c_str());
  return result;
}

auto DeepBlock::weight(const char* name, const Tensor& parameters) const -> Operand {
  Operand result{parameters, {}, {}};
  if (kinds_.other == ProductKind::kFp16) {
    result.magnitudes = magnitudes(name);
    call_.measure_first({places(parameters).weight, shape().weight_size(),
                         call_.network.num_parameters, write<float>(result.magnitudes)});
  }
  return result;
}

Tensor DeepBlock::packed(const char* name, const Operand& weight, bool turned,
                         ProductKind kind) const {
  const Tensor result = call_.workspace.contiguous(
      name, out_, {call_.trajectories, PackConvolution::packed_size(shape(), kind)}, call_.like);
  call_.pack_first({shape(), call_.network.num_parameters, turned, kind,
                    places(weight.values).weight, write<float>(result),
                    read<float>(weight.magnitudes)});
  return result;
}

void DeepBlock::round(const std::vector<Operand>& activations) const {
  const int64_t size = call_.batch * shape().image_size();
  MeasureMagnitudes measure{{}, 0, call_.trajectories};
  RoundOperands round{{}, 0, call_.trajectories, size};
  for (const Operand& one : activations) {
    if (!one.rounded) continue;
    const float* const x = read<float>(one.values);
    if (one.magnitudes) {
      measure.each[measure.count++] = {x, size, size, write<float>(one.magnitudes)};
    }
    round.each[round.count++] = {x, read<float>(one.magnitudes), write<float>(one.rounded)};
  }
  if (measure.count > 0) TM_LAUNCH_FUSED(launch_measure_magnitudes, measure);
  if (round.count > 0) TM_LAUNCH_FUSED(launch_round_operands, round);
}

FusedConvolution DeepBlock::convolution(ProductKind kind, const std::vector<Term>& terms,
                                        const Tensor& y) const {
  FusedConvolution result{
      shape(), kind,           shape().tile_channels(kind), static_cast<int>(terms.size()),
      {},      write<float>(y)};
  for (size_t i = 0; i < terms.size(); ++i) {
    const auto& [x, packed, magnitudes] = terms[i];
    result.term[i] = {in_kind(kind, x.values, x.rounded), read<float>(packed),
                      read<float>(x.magnitudes), read<float>(magnitudes)};
  }
  return result;
}

void DeepBlock::weight_gradient(const Pairs& activations_and_grads) const {
  const FusedConvolutionShape sizes = shape();
  const int64_t splits = FusedConvolutionWeight::splits_of(sizes);
  const int64_t shares = splits * FusedConvolutionWeight::parts(sizes.channels);
  const Tensor partial = call_.workspace.contiguous(
      "fused_weight_shares", out_, {sizes.trajectories, shares, sizes.weight_size()}, call_.like);
  FusedConvolutionWeight params{sizes,  kinds_.other,
                                splits, static_cast<int>(activations_and_grads.size()),
                                {},     write<float>(partial)};
  for (size_t i = 0; i < activations_and_grads.size(); ++i) {
    const auto& [x, grad_y] = activations_and_grads[i];
    params.pair[i] = {in_kind(kinds_.other, x.values, x.rounded),
                      in_kind(kinds_.other, grad_y.values, grad_y.rounded),
                      read<float>(x.magnitudes), read<float>(grad_y.magnitudes)};
  }
  // Queued after the gradient in the input, so that it runs beside the backward pass of the
  // preceding block.
  TM_LAUNCH_BESIDE(launch_fused_convolution_weight, params);
  call_.sum_later(params.sum(gradient_places().weight, call_.network.num_parameters));
}

Tensor DeepBlock::input_gradient(const Tensor& place, const std::vector<Term>& terms) const {
  TM_LAUNCH_FUSED(launch_fused_convolution, convolution(kinds_.other, terms, place));
  return place;
}

}  // namespace trajmatch
