// One convolution of a whole batch [B, S, S, C] (channels last). It uses the layer passes of the
// walk: a few images at a time are copied into planes.
//
// No include guard: included inside the namespace of each instruction set, after layer_passes.h.

// Copies between images [side, side, C] and planes [blocks][rows][rows][lanes], where the image
// starts at pixel `origin`. Calls move(pixel, at, count) with both offsets for every pixel and
// block; `count` is the number of channels, a full pack or the last few. Lanes beyond C stay
// unchanged.
template <class T, class Move>
TM_INLINE void for_plane_pixels(int64_t channels, int64_t side, int64_t rows, int64_t origin,
                                const Move& move) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t block = c / lanes * rows * rows * lanes, count = std::min(lanes, channels - c);
    for (int64_t row = 0; row < side; ++row) {
      int64_t pixel = row * side * channels + c, at = block + (row * rows + origin) * lanes;
      for (int64_t column = 0; column < side; ++column, pixel += channels, at += lanes) {
        move(pixel, at, count);
      }
    }
  }
}

template <class T>
void move_pack(const T* from, T* to, int64_t count) {
  if (count == kLanes<T>) {
    store<Pack<T>>(to, load<Pack<T>>(from));
  } else {
    std::copy_n(from, count, to);
  }
}

template <class T>
class ConvolutionWalk {
 public:
  using Call = WinogradConvolution<T>;

  ConvolutionWalk(const Call& call, int64_t parts, const InParallel& in_parallel,
                  EngineMemory& memory)
      : call_(call),
        block_{*call.node, {}},
        plan_(block_, call.node->in_channels <= kPixelLanes ? 0 : 1, call.precise),
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
      to_blocks_or_zero(call_.bias, bias_);
      in_parallel_(parts_,
                   [&](int64_t part) { for_groups(part, &ConvolutionWalk::convolve_group); });
      return;
    }
    in_parallel_(parts_, [&](int64_t part) { for_groups(part, &ConvolutionWalk::backward_group); });
    const PartSums<T> sums{buffers_[0].sum, buffer_step_, parts_};
    in_parallel_(parts_, [&](int64_t part) {
      for (int64_t item = part; item < ceil_div(plan_.channels, kLanes<T>); item += parts_) {
        if (plan_.tile == 2) {
          unpack_block<2>(plan_, sums, call_.grad_weight, item);
        } else {
          unpack_block<4>(plan_, sums, call_.grad_weight, item);
        }
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

  void to_blocks_or_zero(const T* from, T* to) const {
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

  void read_inputs(const T* images, int64_t first, int64_t count, T* planes) const {
    if (planes == nullptr) return;
    const int64_t size = plan_.in_size * plan_.in_size * plan_.in_channels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = images + (first + i) * size;
      T* to = planes + i * plan_.in_plane();
      if (plan_.narrow_input()) {
        read_image(plan_, from, to);
      } else {
        for_plane_pixels<T>(
            plan_.in_channels, plan_.in_size, plan_.in_side, plan_.in_side + 1,
            [&](int64_t pixel, int64_t at, int64_t n) { move_pack(from + pixel, to + at, n); });
      }
    }
  }

  void write_input_gradients(const T* planes, int64_t first, int64_t count, T* images) const {
    if (planes == nullptr) return;
    const int64_t size = plan_.in_size * plan_.in_size * plan_.in_channels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = planes + i * plan_.in_plane();
      T* to = images + (first + i) * size;
      if (plan_.narrow_input()) {
        write_image_gradient(plan_, from, to);
      } else {
        for_plane_pixels<T>(
            plan_.in_channels, plan_.in_size, plan_.in_side, plan_.in_side + 1,
            [&](int64_t pixel, int64_t at, int64_t n) { move_pack(from + at, to + pixel, n); });
      }
    }
  }

  void read_gradients(const T* grads, int64_t first, int64_t count, T* planes) const {
    if (planes == nullptr) return;
    const int64_t size = plan_.size * plan_.size * plan_.channels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = grads + (first + i) * size;
      T* to = planes + i * plan_.plane();
      for_plane_pixels<T>(
          plan_.channels, plan_.size, plan_.side, 0,
          [&](int64_t pixel, int64_t at, int64_t n) { move_pack(from + pixel, to + at, n); });
    }
  }

  void convolve_group(const Buffers& b, int64_t first, int64_t count, bool) {
    read_inputs(call_.input, first, count, b.input);
    read_inputs(call_.input_tangent, first, count, b.input_tangent);
    ConvolutionTerm<T> term[2] = {};
    int terms = 0;
    if (!is_tangent()) {
      term[terms++] = {b.input, weight_.primal};
      convolve<2>(plan_, count, terms, term, bias_, b.pass, b.y);
    } else {
      if (b.input_tangent != nullptr) term[terms++] = {b.input_tangent, weight_.weight};
      if (tangent_.weight != nullptr) term[terms++] = {b.input, tangent_.weight};
      if (plan_.tile == 2) {
        convolve<2>(plan_, count, terms, term, bias_, b.pass, b.y);
      } else {
        convolve<4>(plan_, count, terms, term, bias_, b.pass, b.y);
      }
    }
    const int64_t size = plan_.size * plan_.size * plan_.channels;
    for (int64_t i = 0; i < count; ++i) {
      const T* from = b.y + i * plan_.plane();
      T* to = call_.output + (first + i) * size;
      for_plane_pixels<T>(
          plan_.channels, plan_.size, plan_.side, 0,
          [&](int64_t pixel, int64_t at, int64_t n) { move_pack(from + at, to + pixel, n); });
    }
  }

  void backward_group(const Buffers& b, int64_t first, int64_t count, bool started) {
    read_inputs(call_.input, first, count, b.input);
    read_inputs(call_.input_tangent, first, count, b.input_tangent);
    read_gradients(call_.grad, first, count, b.y);
    read_gradients(call_.grad_tangent, first, count, b.y_tangent);
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
    if (plan_.tile == 2) {
      ConvolutionBackward<2, T>(plan_, terms, b.pass).run(count, b.sum, started);
    } else {
      ConvolutionBackward<4, T>(plan_, terms, b.pass).run(count, b.sum, started);
    }
    write_input_gradients(b.grad_input, first, count, call_.grad_input);
    write_input_gradients(b.grad_input_tangent, first, count, call_.grad_input_tangent);
  }

  const Call& call_;
  const Block block_;
  const LayerPlan<T> plan_;
  const int64_t parts_;
  const InParallel& in_parallel_;
  PackedLayer<T> weight_, tangent_;
  T* bias_ = nullptr;
  std::vector<Buffers> buffers_;
  int64_t buffer_step_ = 0;
};
