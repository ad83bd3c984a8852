// One convolution of a whole batch [B, S, S, C] (channels last). It uses the layer passes of the
// walk: a few images at a time are copied into planes.
//
// No include guard: included inside the namespace of each instruction set, after layer_passes.h.

template <class T>
class ConvolutionWalk {
 public:
  using Call = WinogradConvolution<T>;

  ConvolutionWalk(const Call& call, int64_t parts, const InParallel& in_parallel,
                  EngineMemory& memory)
      : call_(call),
        block_{*call.node, {}},
        plan_(block_, call.node->in_channels <= kPixelLanes ? 0 : 1, call.precise),
        inputs_(plan_.input_copy()),
        outputs_{plan_.channels, plan_.size, plan_.size,
                 kLanes<T>,      plan_.side, plan_.side * plan_.side * kLanes<T>,
                 plan_.plane()},
        parts_(parts),
        in_parallel_(in_parallel) {
    Memory<T> counting(nullptr, &memory.lists);
    lay_out(counting);
    Memory<T> given(static_cast<T*>(memory.pages.reserve(counting.used() * int64_t{sizeof(T)})),
                    &memory.lists);
    lay_out(given);
  }

  void run() {
    in_parallel_(parts_, [&](int64_t part) {
      for (int64_t item = part; item < pack_items(plan_); item += parts_) {
        pack_layer(plan_, call_.weight, weight_, item);
        if (tangent_.weight != nullptr || tangent_.turned != nullptr) {
          pack_layer(plan_, call_.weight_tangent, tangent_, item);
        }
      }
    });
    if (forward()) {
      copy_or_zero(call_.bias, bias_);
      in_parallel_(parts_,
                   [&](int64_t part) { for_groups(part, &ConvolutionWalk::convolve_group); });
      return;
    }
    in_parallel_(parts_, [&](int64_t part) { for_groups(part, &ConvolutionWalk::backward_group); });
    const PartSums<T> sums{buffers_[0].sum, buffer_step_, parts_};
    in_parallel_(parts_, [&](int64_t part) {
      for (int64_t item = part; item < ceil_div(plan_.channels, kLanes<T>); item += parts_) {
        unpack_block(plan_, sums, call_.grad_weight, item);
      }
    });
  }

 private:
  // Memory of one part: planes of up to plan_.images images, scratch, and the sum of the weight
  // gradient in frequencies. Null where the call does not need them.
  struct Buffers {
    PassBuffers<T> pass;
    T *input, *input_tangent, *y, *y_tangent, *grad_input, *grad_input_tangent;  // planes
    T* sum;
  };

  bool forward() const { return call_.output != nullptr; }
  bool is_tangent() const {
    return call_.input_tangent != nullptr || call_.weight_tangent != nullptr;
  }

  // Runs twice: once to count the memory, once to place the buffers. All parts are laid out alike,
  // buffer_step_ values apart.
  void lay_out(Memory<T>& memory) {
    const int64_t weights = LayerPlan<T>::frequencies(plan_.tile) * plan_.weight_step();
    const int64_t turned = LayerPlan<T>::frequencies(plan_.tile) * plan_.turned_step();
    const bool two = call_.weight_tangent != nullptr, narrow = plan_.narrow_input();
    const bool back = !forward();
    weight_ = tangent_ = {};
    weight_.primal = memory.take_if(forward() && !is_tangent(),
                                    LayerPlan<T>::frequencies(2) * plan_.weight_step());
    weight_.weight = memory.take_if((forward() && is_tangent()) || (back && narrow), weights);
    weight_.turned = memory.take_if(back && !narrow, turned);
    tangent_.weight = memory.take_if(two && (forward() || narrow), weights);
    tangent_.turned = memory.take_if(two && back && !narrow, turned);
    bias_ = memory.take(plan_.width);
    buffers_.clear();
    for (int64_t part = 0; part < parts_; ++part) {
      const int64_t begin = memory.used();
      Buffers b{};
      const int64_t in = plan_.images * plan_.in_plane(), out = plan_.images * plan_.plane();
      b.input = memory.take_if(call_.input != nullptr, in);
      b.input_tangent = memory.take_if(call_.input_tangent != nullptr, in);
      b.y = memory.take(out);
      b.y_tangent = memory.take_if(call_.grad_tangent != nullptr, out);
      b.grad_input = memory.take_if(call_.grad_input != nullptr, in);
      b.grad_input_tangent = memory.take_if(call_.grad_input_tangent != nullptr, in);
      b.sum = memory.take_if(back, LayerPlan<T>::frequencies(plan_.tile) * plan_.gradient_step());
      b.pass.add(plan_, plan_.images);
      b.pass.take(memory, 2);
      buffers_.push_back(b);
      buffer_step_ = memory.used() - begin;
    }
  }

  void copy_or_zero(const T* from, T* to) const {
    std::fill_n(to, plan_.width, T(0));
    if (from != nullptr) std::copy_n(from, plan_.channels, to);
  }

  void for_groups(int64_t part,
                  void (ConvolutionWalk::*body)(const Buffers&, int64_t, int64_t, bool)) {
    const Buffers& b = buffers_[part];
    const int64_t begin = call_.batch * part / parts_, end = call_.batch * (part + 1) / parts_;
    for (T* planes : {b.input, b.input_tangent}) {  // no pass writes their padding
      if (planes != nullptr) std::fill_n(planes, plan_.images * plan_.in_plane(), T(0));
    }
    for (T* planes : {b.y, b.y_tangent}) {
      if (planes != nullptr) std::fill_n(planes, plan_.images * plan_.plane(), T(0));
    }
    for (int64_t first = begin; first < end; first += plan_.images) {
      (this->*body)(b, first, std::min(plan_.images, end - first), first > begin);
    }
  }

  void convolve_group(const Buffers& b, int64_t first, int64_t count, bool) {
    inputs_.read(call_.input, first, count, b.input);
    inputs_.read(call_.input_tangent, first, count, b.input_tangent);
    ConvolutionTerm<T> term[2] = {};
    int terms = 0;
    if (!is_tangent()) {
      term[terms++] = {b.input, weight_.primal};
      convolve<2>(plan_, count, terms, term, bias_, b.pass, b.y);
    } else {
      if (b.input_tangent != nullptr) term[terms++] = {b.input_tangent, weight_.weight};
      if (tangent_.weight != nullptr) term[terms++] = {b.input, tangent_.weight};
      convolve(plan_, count, terms, term, bias_, b.pass, b.y);
    }
    outputs_.write(b.y, first, count, call_.output);
  }

  void backward_group(const Buffers& b, int64_t first, int64_t count, bool started) {
    inputs_.read(call_.input, first, count, b.input);
    inputs_.read(call_.input_tangent, first, count, b.input_tangent);
    outputs_.read(call_.grad, first, count, b.y);
    outputs_.read(call_.grad_tangent, first, count, b.y_tangent);
    for (T* planes : {b.grad_input, b.grad_input_tangent}) {
      if (planes != nullptr) std::fill_n(planes, count * plan_.in_plane(), T(0));
    }
    BackwardTerms<T> terms{};
    terms.grad_y = b.y;
    terms.grad_y_tangent = b.y_tangent;
    terms.input = b.input;
    terms.input_tangent = b.input_tangent;
    terms.weight = &weight_;
    if (call_.weight_tangent != nullptr) terms.weight_tangent = &tangent_;
    terms.grad_input = b.grad_input;
    terms.grad_input_tangent = b.grad_input_tangent;
    convolution_backward(plan_, terms, b.pass, count, b.sum, started);
    inputs_.write(b.grad_input, first, count, call_.grad_input);
    inputs_.write(b.grad_input_tangent, first, count, call_.grad_input_tangent);
  }

  const Call& call_;
  const Block block_;
  const LayerPlan<T> plan_;
  const PlaneCopy<T> inputs_, outputs_;
  const int64_t parts_;
  const InParallel& in_parallel_;
  PackedLayer<T> weight_, tangent_;
  T* bias_ = nullptr;
  std::vector<Buffers> buffers_;
  int64_t buffer_step_ = 0;
};
