#include "ops/layer.h"

#include <type_traits>
#include <utility>

#include "core/side_stream.h"
#include "ops/first_block.h"

namespace trajmatch {

namespace {

// Rounds up to a multiple of 4 elements, so that the next tensor starts where 16 bytes can be read
// at once.
int64_t aligned(int64_t elements) { return (elements + 3) / 4 * 4; }

// Decides what a tape keeps of each value.
std::vector<Kept> kept_of(const Network& network, bool float32) {
  std::vector<Kept> kept(network.nodes.size() + 1);
  for (size_t i = 0; i < network.nodes.size(); ++i) {
    const Node& node = network.nodes[i];
    // A convolution reads its input again for the weight gradient, and the gradient in its input is
    // costly to recompute.
    if (node.kind == NodeKind::kConvolution) kept[node.input].data = kept[node.input].grad = true;
    if (node.kind == NodeKind::kNormActPool) {
      kept[node.input].data = true;
      kept[i + 1].statistics = node.norm.shape.groups > 0;
    }
  }
  // The classifier does the same with the last value. Value 0, the images, belongs to the caller.
  kept.back().data = kept.back().grad = true;
  kept[0] = {};
  // FirstBlock recomputes the output of its convolution.
  if (float32 && FirstBlock::takes(network)) kept[1].data = false;
  return kept;
}

Ints value_sizes(const Network& network, size_t value, int64_t images) {
  if (value == 0) return {images, network.in_channels, network.image_size, network.image_size};
  const Node& node = network.nodes[value - 1];
  return {images, node.channels, node.size, node.size};
}

// Calls visit(value, member, sizes) for everything that a tape keeps of the values, in the order of
// the tape.
template <class Visit>
void each_kept(const Network& network, const std::vector<Kept>& kept, int64_t batch,
               int64_t trajectories, const Visit& visit) {
  for (size_t value = 0; value < kept.size(); ++value) {
    const Ints sizes = value_sizes(network, value, trajectories * batch);
    if (kept[value].data) visit(value, &Value::data, sizes);
    if (kept[value].statistics) {
      const NormActPoolShape shape = network.nodes[value - 1].norm.shape_of(batch, trajectories);
      visit(value, &Value::mean, Ints{shape.statistics()});
      visit(value, &Value::rstd, Ints{shape.statistics()});
    }
    if (kept[value].grad) visit(value, &Value::grad, sizes);
  }
}

}  // namespace

int64_t layer_tape_size(const Network& network, int64_t batch, int64_t trajectories, bool float32) {
  // Logits and their gradient.
  int64_t size = 2 * aligned(trajectories * batch * network.num_classes);
  each_kept(
      network, kept_of(network, float32), batch, trajectories,
      [&](size_t, Tensor Value::*, const Ints& sizes) { size += aligned(product_of(sizes)); });
  return size;
}

LayerCall::LayerCall(const Network& network_, const Tensor& like_, int64_t trajectories_)
    : network(network_),
      like(like_),
      trajectories(trajectories_),
      kept(kept_of(network, like.scalar_type() == ScalarType::Float)),
      rounds(kept.size()),
      values(kept.size()) {}

LayerCall::~LayerCall() {
  // Memory that the side stream still uses must not go to others. Errors were reported before.
  try {
    join();
  } catch (...) {
  }
}

Ints LayerCall::sizes_of_value(size_t value) const { return value_sizes(network, value, images()); }

NormActPoolShape LayerCall::shape_of(const NormActPoolNode& norm) const {
  NormActPoolShape shape = norm.shape_of(batch, trajectories);
  shape.parameter_stride = shape.elementwise ? norm.weight.size : network.num_parameters;
  return shape;
}

void LayerCall::begin(const Tensor& images, const std::optional<VectorPart>& tape, bool jvp) {
  batch = images.size(0) / trajectories;
  has_tape = tape.has_value();
  is_jvp = jvp;
  for (Value& value : values) value = Value();
  measured.clear();
  packed.clear();
  sums_float.clear();
  sums_double.clear();
  values[0].data = images;
  int64_t at = tape ? tape->begin : 0;
  // Takes the next tensor from the tape. On a new tape it also clears the padding after the tensor,
  // which nothing else writes.
  const auto take = [&](const Ints& sizes) {
    const bool image = sizes.size() == 4;
    const int64_t size = product_of(sizes), gap = aligned(size) - size;
    if (!jvp && gap > 0) {
      Tensor unused = vector_view(tape->base, at + size, gap);
      torch::stable::zero_(unused);
    }
    const Tensor result = view(tape->base, at, sizes,
                               image ? channels_last_strides(sizes) : contiguous_strides(sizes));
    at += size + gap;
    return result;
  };
  const Ints rows{trajectories * batch, network.num_classes};
  logits = tape ? take(rows) : workspace.contiguous("logits", 0, rows, like);
  grad_logits = tape ? take(rows) : workspace.contiguous("grad_logits", 0, rows, like);
  if (!tape) return;
  each_kept(network, kept, batch, trajectories,
            [&](size_t value, Tensor Value::* member, const Ints& sizes) {
              values[value].*member = take(sizes);
            });
}

#ifdef TRAJMATCH_WITH_CUDA
namespace {

// Launches what was collected, and forgets it. One launch takes up to Params::kMost.
template <class Params, class Each, class Launch>
void launch_all(std::vector<Each>& collected, Params params, const Launch& launch) {
  for (size_t first = 0; first < collected.size(); first += Params::kMost) {
    params.count = 0;
    for (size_t i = first; i < collected.size() && params.count < Params::kMost; ++i) {
      params.each[params.count++] = collected[i];
    }
    launch(params);
  }
  collected.clear();
}

}  // namespace

void LayerCall::pack_weights() {
  const Device device(like);
  launch_all(measured, MeasureMagnitudes{{}, 0, trajectories},
             [&](const auto& params) { cuda::launch_measure_magnitudes(params, device.stream()); });
  launch_all(packed, PackConvolutions{},
             [&](const auto& params) { cuda::launch_pack_convolutions(params, device.stream()); });
}

Stream LayerCall::fork() {
  const Device device(like);
  const Stream side = cuda::side_stream();
  cuda::order(device.stream(), side);
  forked = true;
  return side;
}

void LayerCall::beside(std::function<void()> work) {
  if (!on_cuda(like)) return work();
  const Stream side = fork();
  calls_beside.push_back(std::move(work));
#ifdef TRAJMATCH_EMULATED
  cuda::call(side, calls_beside.back());
#else
  const StreamGuard guard(side, like);
  calls_beside.back()();
#endif
}

void LayerCall::join() {
  if (!forked) return;
  const Device device(like);
  cuda::order(cuda::side_stream(), device.stream());
  forked = false;
  calls_beside.clear();
}

void LayerCall::add_shares() {
  join();
  const Device device(like);
  const auto launch = [&](const auto& params) { cuda::launch_sum_shares(params, device.stream()); };
  launch_all(sums_float, ShareSums<float>{{}, 0, trajectories}, launch);
  launch_all(sums_double, ShareSums<double>{{}, 0, trajectories}, launch);
}
#else
void LayerCall::pack_weights() {}
void LayerCall::add_shares() {}
Stream LayerCall::fork() { return nullptr; }
void LayerCall::beside(std::function<void()> work) { work(); }
void LayerCall::join() {}
#endif

Tensor LayerCall::data_place(size_t value) {
  Tensor& data = values[value].data;
  if (!data.defined()) data = place("data", value);
  return data;
}

Tensor LayerCall::grad_place(size_t value) {
  const Value& to = values[value];
  if (to.has_grad || !wants_grad(value)) return place("grad_share", value);
  return has_tape && kept[value].grad ? to.grad : place("grad", value);
}

Tensor LayerCall::grad_tangent_place(size_t value) {
  return place(values[value].has_grad_tangent ? "grad_tangent_share" : "grad_tangent", value);
}

void LayerCall::set_data(size_t value, const Tensor& computed) {
  Tensor& data = values[value].data;
  if (has_tape && kept[value].data) {
    copy(data, computed);
  } else {
    data = as_channels_last(computed);
  }
}

void LayerCall::add_grad(size_t value, const Tensor& computed) {
  Value& to = values[value];
  const Tensor sum = to.has_grad ? add(to.grad, computed) : computed;
  to.has_grad = true;
  if (!(has_tape && kept[value].grad)) {
    to.grad = as_channels_last(sum);
  } else if (to.grad.const_data_ptr() != sum.const_data_ptr()) {
    copy(to.grad, sum);
  }
}

void LayerCall::add_grad_tangent(size_t value, const Tensor& computed) {
  Value& to = values[value];
  to.grad_tangent =
      as_channels_last(to.has_grad_tangent ? add(to.grad_tangent, computed) : computed);
  to.has_grad_tangent = true;
}

}  // namespace trajmatch
