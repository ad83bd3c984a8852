// The building blocks of the layer-by-layer engine (ops/layer_student.h): layers, the values they
// make, and the state of a call that they share. A layer runs one node of the network, or two if it
// is a fused block.
//
// Letters: K trajectories (students of one call, each with its own parameters and images), B images
// of each. All activations are [K B, ..], all vectors of parameters [K, P].
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "core/fused_convolution.h"
#include "core/half_operand.h"
#include "core/share_sums.h"
#include "ops/network.h"
#include "ops/workspace.h"

namespace trajmatch {

// A value made by a node [K B, C, H, W] in channels-last, with its gradient, statistics and
// tangents.
struct Value {
  Tensor data, grad;
  Tensor mean, rstd;  // [K B, groups] statistics of a norm; K rows for a batch norm
  OptionalTensor tangent;
  Tensor grad_tangent;
  // True once this call has a share of the gradient; later shares are added to it.
  bool has_grad = false, has_grad_tangent = false;
};

// The parts of a value that a tape keeps for gradient_jvp.
struct Kept {
  bool data = false;        // a later node needs it
  bool statistics = false;  // the value is the output of a norm
  bool grad = false;        // recomputing it would cost a product
};

// The parts of a value that its node rounds to TF32, because only a DeepBlock's TF32 products read
// them.
struct Rounds {
  bool data = false, tangent = false;
};

// The state of the current call, which computes the gradient of a loss or its derivative along
// tangents. It is reused from call to call.
struct LayerCall {
  LayerCall(const Network& network, const Tensor& like, int64_t trajectories);
  LayerCall(const LayerCall&) = delete;
  ~LayerCall();

  // Forgets the previous call. If there is a tape, the values it keeps become views of it: gradient
  // (`jvp` false) writes them, gradient_jvp (`jvp` true) reads them.
  void begin(const Tensor& images, const std::optional<VectorPart>& tape, bool jvp);

  // Memory in the workspace with the shape of a value, by name.
  Tensor place(const char* name, size_t value) {
    return workspace.channels_last(name, value, sizes_of_value(value), like);
  }
  // Destinations for the data of a value, its gradient, and the tangent of its gradient. Pass
  // what was written to set_data, add_grad or add_grad_tangent. data_place, and grad_place for the
  // first share of a gradient, return memory on the tape if it keeps the value.
  Tensor data_place(size_t value);
  Tensor grad_place(size_t value);
  Tensor grad_tangent_place(size_t value);
  // Store the result of a node: data are set; gradients are added to earlier shares.
  void set_data(size_t value, const Tensor& computed);
  void add_grad(size_t value, const Tensor& computed);
  void add_grad_tangent(size_t value, const Tensor& computed);

  // On CUDA: measure_first and pack_first collect weights to measure or to reorder for the fused
  // kernels; pack_weights launches each kind together, before the first layer runs.
  void measure_first(const MeasureMagnitudes::Measured& weights) { measured.push_back(weights); }
  void pack_first(const PackConvolution& weights) { packed.push_back(weights); }
  void pack_weights();

  // On CUDA: adds up shares of a gradient or loss later, in one launch with those of all layers.
  // Until then the sum is not there, and the shares must stay: no other layer may use their memory.
  void sum_later(const ShareSum<float>& sum) { sums_float.push_back(sum); }
  void sum_later(const ShareSum<double>& sum) { sums_double.push_back(sum); }
  template <class T>
  void sum_later(const ShareSums<T>& sums) {
    for (int i = 0; i < sums.count; ++i) sum_later(sums.each[i]);
  }
  // Zeros in a part of every trajectory's gradient: a sum of no shares on CUDA.
  template <class T>
  void clear_later(const Slice& slice) {
    T* const to = write<T>(grad_theta) + slice.offset;
    sum_later(ShareSum<T>{nullptr, to, 0, 0, slice.size, 0, network.num_parameters});
  }
  void add_shares();

  // On CUDA: the side stream, which waits for all work that is queued so far. Until join(), other
  // work may neither touch what it writes nor write what it reads.
  Stream fork();
  // Calls `work`, which uses PyTorch, on that stream; on the CPU it is just called. Its captures
  // live until join(), so that no other work gets the memory of their tensors earlier.
  void beside(std::function<void()> work);
  // Lets the work that follows wait for that on the side stream.
  void join();

  // True if a node must compute the gradient in a value that it reads. The tangent of the gradient
  // is always computed.
  bool wants_grad(size_t value) const {
    if (value == 0) return wants_image_gradient;
    return !(is_jvp && has_tape && kept[value].grad);
  }
  // The library's layers round nothing.
  Rounds rounds_of(size_t value) const { return runs_fused ? rounds[value] : Rounds{}; }
  Ints sizes_of_value(size_t value) const;
  int64_t images() const { return trajectories * batch; }
  // The shape of a norm of this call. The parameters of two trajectories lie P apart, or next to
  // each other if there is one per value of an image: NormActPool reorders those.
  NormActPoolShape shape_of(const NormActPoolNode& norm) const;
  // A part of every trajectory's vector of parameters: [K, size], P elements between rows.
  Tensor slice_of(const Tensor& vectors, const Slice& slice) const {
    return view(vectors, slice.offset, {trajectories, slice.size}, {network.num_parameters, 1});
  }

  const Network& network;
  Tensor like;
  const int64_t trajectories;  // K
  Workspace workspace;
  std::vector<Kept> kept;      // indexed by value
  std::vector<Rounds> rounds;  // indexed by value
  // State of the current call:
  int64_t batch = 0;  // B
  bool has_tape = false, is_jvp = false, wants_image_gradient = false;
  bool forked = false, runs_fused = false;
  std::vector<std::function<void()>> calls_beside;
  Tensor theta;                  // [K, P]
  OptionalTensor theta_tangent;  // [K, P]
  Tensor grad_theta;             // [K, P], the gradient in theta or its tangent
  std::vector<Value> values;     // value 0: the images
  Tensor logits, grad_logits;    // [K B, classes]
  std::vector<MeasureMagnitudes::Measured> measured;
  std::vector<PackConvolution> packed;
  std::vector<ShareSum<float>> sums_float;
  std::vector<ShareSum<double>> sums_double;
};

// Number of elements in the tape of a batch of each trajectory.
int64_t layer_tape_size(const Network& network, int64_t batch, int64_t trajectories, bool float32);

// The passes of a call, in this order: begin; forward, unless the call reads a tape; tangent, only
// in gradient_jvp; backward, which in gradient_jvp also computes the tangents of the gradients.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual void begin() {}
  virtual void forward() = 0;
  virtual void tangent() = 0;
  virtual void backward() = 0;
};

}  // namespace trajmatch
