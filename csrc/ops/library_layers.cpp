#include "ops/library_layers.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/convolution.h"
#include "ops/run.h"
#include "ops/threads.h"

namespace trajmatch {

namespace {

// Reshapes images or weights to the rows of a matrix in parameter order (C, H, W), and back.
Tensor as_rows(const Tensor& images) {
  const int64_t rows = images.size(0), columns = images.numel() / rows;
  return view(as_contiguous(images), 0, {rows, columns}, {columns, 1});
}

Tensor as_images(const Tensor& rows, int64_t channels, int64_t size) {
  const Ints sizes{rows.size(0), channels, size, size};
  return view(as_contiguous(rows), 0, sizes, contiguous_strides(sizes));
}

// Keeps every `stride`-th pixel in each direction.
Tensor every_pixel(const Tensor& images, int64_t stride) {
  if (stride == 1) return images;
  Ints sizes = sizes_of(images), strides = channels_last_strides(sizes);
  for (int dim : {2, 3}) {
    sizes[dim] = (sizes[dim] - 1) / stride + 1;
    strides[dim] *= stride;
  }
  return as_channels_last(view(images, 0, sizes, strides));
}

// A convolution or linear layer. y = W x + b is linear in W and in x, so a gradient is one product,
// and a tangent is a sum of two.
class Convolution : public Layer {
 public:
  Convolution(LayerCall& call, size_t index)
      : call_(call),
        own_(call.network.nodes[index].convolution),
        in_(static_cast<size_t>(call.network.nodes[index].input)),
        out_(index + 1) {}

 protected:
  // Absent if there is no bias or the bias has no effect.
  OptionalTensor bias_of(const Tensor& theta, int64_t trajectory) const {
    if (own_.bias_is_inert || own_.bias.size == 0) return std::nullopt;
    return vector_view(theta, trajectory * call_.network.num_parameters + own_.bias.offset,
                       own_.bias.size);
  }
  // Uses the gradient in y or, in gradient_jvp, its tangent.
  void write_bias_gradient() const {
    if (own_.bias.size == 0) return;
    const Value& y = call_.values[out_];
    const Tensor& grad = call_.is_jvp ? y.grad_tangent : y.grad;
    Tensor to = call_.slice_of(call_.grad_theta, own_.bias);
    if (own_.bias_is_inert && on_cuda(to)) {
      with_dtype(to, [&](auto type) { call_.clear_later<decltype(type)>(own_.bias); });
    } else if (own_.bias_is_inert) {
      torch::stable::zero_(to);
    } else {
      const int64_t channels = own_.channels, size = grad.numel() / call_.trajectories;
      copy(to, sum_over_rows(view(grad, 0, {size / channels, call_.trajectories, channels},
                                  {channels, size, 1})));
    }
  }

  LayerCall& call_;
  const ConvolutionNode& own_;
  const size_t in_, out_;
};

class LibraryConvolution : public Convolution {
 public:
  using Convolution::Convolution;

  void begin() override { weight_ = weights_of(call_.theta, "weight"); }

  void forward() override {
    call_.set_data(out_, joined(out_, [&](int64_t k) {
                     return product(of(call_.values[in_].data, k), weight_[k],
                                    bias_of(call_.theta, k));
                   }));
  }

  // y' = W x' + W' x + b'
  void tangent() override {
    if (call_.theta_tangent) weight_tangent_ = weights_of(*call_.theta_tangent, "weight_tangent");
    const Value& x = call_.values[in_];
    call_.values[out_].tangent = joined(out_, [&](int64_t k) {
      if (!call_.theta_tangent) return product(of(*x.tangent, k), weight_[k], std::nullopt);
      const Tensor y = product(of(x.data, k), weight_tangent_[k], bias_of(*call_.theta_tangent, k));
      return x.tangent ? add(y, product(of(*x.tangent, k), weight_[k], std::nullopt)) : y;
    });
  }

  void backward() override {
    const Value& y = call_.values[out_];
    write_bias_gradient();
    if (call_.wants_grad(in_)) {
      call_.add_grad(
          in_, joined(in_, [&](int64_t k) { return input_gradient(of(y.grad, k), weight_[k]); }));
    }
    if (call_.is_jvp) {
      call_.add_grad_tangent(
          in_, joined(in_, [&](int64_t k) {
            const Tensor tangent = input_gradient(of(y.grad_tangent, k), weight_[k]);
            if (!call_.theta_tangent) return tangent;
            return add(tangent, input_gradient(of(y.grad, k), weight_tangent_[k]));
          }));
    }
    write_weight_gradient();
  }

 private:
  Tensor of(const Tensor& images, int64_t trajectory) const {
    return call_.trajectories == 1 ? images : part_of(images, trajectory, call_.trajectories);
  }
  // The results of body(trajectory) one after the other, with the sizes of a value. PyTorch's
  // convolutions have one weight for all images, so each trajectory has calls of its own.
  template <class Body>
  Tensor joined(size_t value, const Body& body) const {
    if (call_.trajectories == 1) return body(0);
    const Tensor result =
        empty(call_.sizes_of_value(value), call_.like, std::nullopt, MemoryFormat::ChannelsLast);
    for (int64_t k = 0; k < call_.trajectories; ++k) {
      Tensor to = of(result, k);
      copy(to, body(k));
    }
    return result;
  }

  Tensor weight_place(const Tensor& theta, int64_t trajectory) const {
    const Ints sizes{own_.channels, own_.in_channels, own_.kernel, own_.kernel};
    return view(theta, trajectory * call_.network.num_parameters + own_.weight.offset, sizes,
                contiguous_strides(sizes));
  }
  // The weight of each trajectory, copied to channels-last once; otherwise PyTorch would do so in
  // each of its calls.
  std::vector<Tensor> weights_of(const Tensor& theta, const char* name) {
    const int64_t trajectories = call_.trajectories, size = own_.weight.size;
    std::vector<Tensor> result;
    for (int64_t k = 0; k < trajectories; ++k) result.push_back(weight_place(theta, k));
    if (own_.is_linear()) return result;
    const Tensor copies = call_.workspace.contiguous(name, out_, {trajectories * size}, call_.like);
    for (int64_t k = 0; k < trajectories; ++k) {
      const Ints sizes = sizes_of(result[k]);
      Tensor weight = view(copies, k * size, sizes, channels_last_strides(sizes));
      copy(weight, result[k]);
      result[k] = weight;
    }
    return result;
  }

  Tensor product(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) const {
    if (own_.is_linear()) {
      return as_images(linear(as_rows(x), as_rows(weight), bias), own_.channels, 1);
    }
    return as_channels_last(convolution(x, weight, bias, own_.stride, own_.padding));
  }
  Tensor input_gradient(const Tensor& grad, const Tensor& weight) const {
    if (own_.is_linear()) {
      return as_images(mm(as_rows(grad), as_rows(weight)), own_.in_channels, own_.in_size);
    }
    // PyTorch only reads the sizes of this input.
    return std::get<0>(convolution_backward(grad, of(call_.place("sizes_only", in_), 0), weight,
                                            own_.stride, own_.padding, {true, false, false}));
  }
  // Queued after the gradient in the input, so that it runs beside the backward pass of the
  // preceding layer.
  void write_weight_gradient() const {
    const Value &x = call_.values[in_], &y = call_.values[out_];
    std::vector<std::pair<Tensor, Tensor>> grads_and_inputs{
        {call_.is_jvp ? y.grad_tangent : y.grad, x.data}};
    if (call_.is_jvp && x.tangent) grads_and_inputs.emplace_back(y.grad, *x.tangent);
    call_.beside([this, grads_and_inputs] {
      for (int64_t k = 0; k < call_.trajectories; ++k) {
        Tensor sum;
        for (const auto& [grad, input] : grads_and_inputs) {
          const Tensor one = weight_gradient(of(grad, k), of(input, k));
          sum = sum.defined() ? add(sum, one) : one;
        }
        Tensor to = weight_place(call_.grad_theta, k);
        copy(to, sum);
      }
    });
  }
  Tensor weight_gradient(const Tensor& grad, const Tensor& x) const {
    if (own_.is_linear()) {
      return as_images(mm(transposed(as_rows(grad)), as_rows(x)), own_.in_channels, own_.in_size);
    }
    // Works around oneDNN in torch 2.13, which writes out of bounds for 1x1 kernels with a stride
    // and four channels: subsample the input and use stride 1.
    const bool strided = own_.kernel == 1 && own_.padding == 0;
    return std::get<1>(convolution_backward(
        grad, strided ? every_pixel(x, own_.stride) : x, weight_place(call_.grad_theta, 0),
        strided ? 1 : own_.stride, own_.padding, {false, true, false}));
  }

  std::vector<Tensor> weight_, weight_tangent_;  // of each trajectory
};

// A convolution on the CPU by the student engine's Winograd kernels (core/convolution.h).
template <class T>
class OwnConvolution : public Convolution {
 public:
  using Convolution::Convolution;

  void forward() override {
    WinogradConvolution<T> pass = primal();
    const OptionalTensor bias = bias_of(call_.theta, 0);
    call_.values[out_].data = call_.data_place(out_);
    pass.bias = read<T>(bias);
    pass.output = write<T>(call_.values[out_].data);
    run(pass);
  }

  void tangent() override {
    WinogradConvolution<T> pass = with_tangents();
    OptionalTensor bias;
    if (call_.theta_tangent) bias = bias_of(*call_.theta_tangent, 0);
    const Tensor out = call_.place("tangent", out_);
    pass.bias = read<T>(bias);
    pass.output = write<T>(out);
    run(pass);
    call_.values[out_].tangent = out;
  }

  void backward() override {
    const Value& y = call_.values[out_];
    WinogradConvolution<T> pass = call_.is_jvp ? with_tangents() : primal();
    pass.grad = read<T>(y.grad);
    pass.grad_weight = write<T>(call_.grad_theta) + own_.weight.offset;
    OptionalTensor grad, grad_tangent;
    if (call_.wants_grad(in_)) grad = call_.grad_place(in_);
    if (call_.is_jvp) {
      grad_tangent = call_.grad_tangent_place(in_);
      pass.grad_tangent = read<T>(y.grad_tangent);
    }
    pass.grad_input = write<T>(grad);
    pass.grad_input_tangent = write<T>(grad_tangent);
    run(pass);
    write_bias_gradient();
    if (grad) call_.add_grad(in_, *grad);
    if (grad_tangent) call_.add_grad_tangent(in_, *grad_tangent);
  }

 private:
  WinogradConvolution<T> primal() const {
    WinogradConvolution<T> pass{};
    pass.node = &own_;
    pass.precise = call_.network.precise;
    pass.batch = call_.batch;
    pass.input = read<T>(call_.values[in_].data);
    pass.weight = read<T>(call_.theta) + own_.weight.offset;
    return pass;
  }
  WinogradConvolution<T> with_tangents() const {
    WinogradConvolution<T> pass = primal();
    pass.input_tangent = read<T>(call_.values[in_].tangent);
    if (call_.theta_tangent) {
      pass.weight_tangent = read<T>(*call_.theta_tangent) + own_.weight.offset;
    }
    return pass;
  }
  void run(const WinogradConvolution<T>& pass) const {
    const int64_t threads = torch::stable::get_num_threads();
    cpu::winograd_convolution(pass, std::min(threads, pass.batch), on_threads, memory_of_thread());
  }
};

template <class T>
class NormActPool : public Layer {
 public:
  NormActPool(LayerCall& call, size_t index)
      : call_(call),
        node_(call.network.nodes[index]),
        own_(node_.norm),
        in_(static_cast<size_t>(node_.input)),
        out_(index + 1) {}

  void begin() override {
    shape_ = call_.shape_of(own_);
    weight_ = parameters(call_.theta, own_.weight, "norm_weight");
    bias_ = parameters(call_.theta, own_.bias, "norm_bias");
    Value& to = call_.values[out_];
    // On a tape the statistics already have their place.
    if (to.mean.defined()) return;
    to.mean = statistics("mean");
    to.rstd = statistics("rstd");
  }

  void forward() override {
    Value& to = call_.values[out_];
    to.data = call_.data_place(out_);
    run(NormActPoolForward<T>{shape_, read<T>(x().data), read<T>(weight_), read<T>(bias_),
                              write<T>(to.data), write<T>(to.mean), write<T>(to.rstd), sums(),
                              call_.rounds_of(out_).data},
        Device(call_.like));
  }

  void tangent() override {
    weight_tangent_ = bias_tangent_ = std::nullopt;
    if (call_.theta_tangent) {
      weight_tangent_ = parameters(*call_.theta_tangent, own_.weight, "norm_weight_tangent");
      bias_tangent_ = parameters(*call_.theta_tangent, own_.bias, "norm_bias_tangent");
    }
    mean_tangent_ = statistics("mean_tangent");
    projection_ = statistics("projection");
    Value& to = call_.values[out_];
    to.tangent = call_.place("tangent", out_);
    run(NormActPoolTangent<T>{shape_, read<T>(x().data), read<T>(weight_), read<T>(bias_),
                              read<T>(to.mean), read<T>(to.rstd), read<T>(x().tangent),
                              read<T>(weight_tangent_), read<T>(bias_tangent_),
                              write<T>(to.tangent), write<T>(mean_tangent_), write<T>(projection_),
                              sums(), call_.rounds_of(out_).tangent},
        Device(call_.like));
  }

  void backward() override {
    const Value& from = call_.values[out_];
    const Tensor grad = call_.grad_place(in_);
    // CUDA adds the shares of all layers in one launch, if they need not be reordered afterwards.
    const bool adds_later = on_cuda(call_.like) && !shape_.elementwise;
    OptionalTensor weight = gradient_place(own_.weight, "grad_norm_weight");
    OptionalTensor bias = gradient_place(own_.bias, "grad_norm_bias");
    OptionalTensor partial;
    if (weight) {
      partial = call_.workspace.contiguous("partial", adds_later ? out_ : 0,
                                           {shape_.images(), 2, own_.weight.size}, call_.like);
    }
    if (weight && adds_later) {
      call_.sum_later(shape_.affine_sums(read<T>(partial), write<T>(weight), write<T>(bias)));
      weight = bias = std::nullopt;
    }
    if (call_.is_jvp) {
      const Tensor grad_tangent = call_.grad_tangent_place(in_);
      run(
          NormActPoolBackwardTangent<T>{
              shape_, read<T>(x().data), read<T>(weight_), read<T>(bias_), read<T>(from.mean),
              read<T>(from.rstd), read<T>(x().tangent), read<T>(weight_tangent_),
              read<T>(bias_tangent_), read<T>(mean_tangent_), read<T>(projection_),
              read<T>(from.grad), read<T>(from.grad_tangent), write<T>(grad),
              write<T>(grad_tangent), write<T>(partial), write<T>(weight), write<T>(bias), sums()},
          Device(call_.like));
      call_.add_grad_tangent(in_, grad_tangent);
    } else {
      run(NormActPoolBackward<T>{shape_, read<T>(x().data), read<T>(weight_), read<T>(bias_),
                                 read<T>(from.mean), read<T>(from.rstd), read<T>(from.grad),
                                 write<T>(grad), write<T>(partial), write<T>(weight),
                                 write<T>(bias), sums()},
          Device(call_.like));
    }
    if (call_.wants_grad(in_)) call_.add_grad(in_, grad);
    finish_gradient(own_.weight, weight);
    finish_gradient(own_.bias, bias);
  }

 private:
  const Value& x() const { return call_.values[in_]; }

  Tensor statistics(const char* name) const {
    return call_.workspace.contiguous(name, out_, {shape_.statistics()}, call_.like);
  }
  // The workspace for images that several blocks of a CUDA kernel share, or null.
  double* sums() const {
    const int64_t size = on_cuda(call_.like) ? shape_.sums_size() : 0;
    if (size == 0) return nullptr;
    const int64_t per_double = sizeof(double) / sizeof(T);
    return reinterpret_cast<double*>(
        write<T>(call_.workspace.contiguous("norm_sums", 0, {size * per_double}, call_.like)));
  }

  // The weights or biases in the order that the kernels read, (pixels, C). Parameters are stored as
  // (C, pixels); the two differ if there is one value per value of an image.
  OptionalTensor parameters(const Tensor& theta, const Slice& slice, const char* name) const {
    if (slice.size == 0) return std::nullopt;
    const Tensor values = call_.slice_of(theta, slice);
    if (!shape_.elementwise) return values;
    const Tensor turned = reordered(name, out_, slice);
    copy_turned(turned, slice.size, values, call_.network.num_parameters, shape_.channels,
                shape_.pixels());
    return turned;
  }
  // Destination of a gradient: its place in grad_theta, or a buffer in kernel order that
  // finish_gradient transposes.
  OptionalTensor gradient_place(const Slice& slice, const char* name) const {
    if (slice.size == 0) return std::nullopt;
    if (shape_.elementwise) return reordered(name, 0, slice);
    return call_.slice_of(call_.grad_theta, slice);
  }
  void finish_gradient(const Slice& slice, const OptionalTensor& gradient) const {
    if (!gradient || !shape_.elementwise) return;
    copy_turned(call_.slice_of(call_.grad_theta, slice), call_.network.num_parameters, *gradient,
                slice.size, shape_.pixels(), shape_.channels);
  }
  Tensor reordered(const char* name, size_t index, const Slice& slice) const {
    return call_.workspace.contiguous(name, index, {call_.trajectories, slice.size}, call_.like);
  }
  // Transposes the [rows, columns] of each trajectory to [columns, rows].
  void copy_turned(const Tensor& to, int64_t to_stride, const Tensor& from, int64_t from_stride,
                   int64_t rows, int64_t columns) const {
    const Ints sizes{call_.trajectories, rows, columns};
    Tensor target = view(to, 0, sizes, {to_stride, 1, rows});
    copy(target, view(from, 0, sizes, {from_stride, columns, 1}));
  }

  LayerCall& call_;
  const Node& node_;
  const NormActPoolNode& own_;
  const size_t in_, out_;
  NormActPoolShape shape_{};
  OptionalTensor weight_, bias_, weight_tangent_, bias_tangent_;
  Tensor mean_tangent_, projection_;
};

class Add : public Layer {
 public:
  Add(LayerCall& call, size_t index)
      : call_(call),
        inputs_{static_cast<size_t>(call.network.nodes[index].input),
                static_cast<size_t>(call.network.nodes[index].other)},
        out_(index + 1) {}

  void forward() override { call_.set_data(out_, add(in(0).data, in(1).data)); }

  void tangent() override {
    const OptionalTensor &a = in(0).tangent, &b = in(1).tangent;
    call_.values[out_].tangent = a && b ? add(*a, *b) : a ? a : b;
  }

  void backward() override {
    const Value& y = call_.values[out_];
    for (size_t value : inputs_) {
      if (call_.wants_grad(value)) call_.add_grad(value, y.grad);
      if (call_.is_jvp) call_.add_grad_tangent(value, y.grad_tangent);
    }
  }

 private:
  const Value& in(int which) const { return call_.values[inputs_[which]]; }

  LayerCall& call_;
  const size_t inputs_[2];
  const size_t out_;
};

// The mean over windows that do not overlap.
class Mean : public Layer {
 public:
  Mean(LayerCall& call, size_t index)
      : call_(call), node_(call.network.nodes[index]), out_(index + 1) {}

  void forward() override { call_.set_data(out_, mean_of_windows(x().data, node_.window)); }

  void tangent() override {
    call_.values[out_].tangent = as_channels_last(mean_of_windows(*x().tangent, node_.window));
  }

  void backward() override {
    const Value& y = call_.values[out_];
    const size_t value = static_cast<size_t>(node_.input);
    const Tensor input = call_.place("sizes_only", value);
    if (call_.wants_grad(value)) {
      call_.add_grad(value, mean_of_windows_backward(y.grad, input, node_.window));
    }
    if (!call_.is_jvp) return;
    call_.add_grad_tangent(value, mean_of_windows_backward(y.grad_tangent, input, node_.window));
  }

 private:
  const Value& x() const { return call_.values[node_.input]; }

  LayerCall& call_;
  const Node& node_;
  const size_t out_;
};

}  // namespace

template <class T>
std::unique_ptr<Layer> library_layer(LayerCall& call, size_t node) {
  switch (call.network.nodes[node].kind) {
    case NodeKind::kConvolution:
      if (!on_cuda(call.like) &&
          WinogradConvolution<T>::takes(call.network.nodes[node].convolution)) {
        return std::make_unique<OwnConvolution<T>>(call, node);
      }
      return std::make_unique<LibraryConvolution>(call, node);
    case NodeKind::kNormActPool:
      return std::make_unique<NormActPool<T>>(call, node);
    case NodeKind::kAdd:
      return std::make_unique<Add>(call, node);
    case NodeKind::kMean:
      return std::make_unique<Mean>(call, node);
  }
  return nullptr;
}

template std::unique_ptr<Layer> library_layer<float>(LayerCall&, size_t);
template std::unique_ptr<Layer> library_layer<double>(LayerCall&, size_t);

}  // namespace trajmatch
