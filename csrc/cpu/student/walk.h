// One call of the student engine: the walk over the network.
//
// pack       a SIMD vector of neighbouring channels (cpu/pack.h)
// lane       one element of a pack; a pack has kLanes<T>
// block      the channels of one pack; the last block is filled up with zero channels
// plane      one image's activations or gradients in a layer, [blocks][side][side][lanes]
// tile       m x m outputs of a Winograd transform F(m, 3), from (m + 2) x (m + 2) inputs
// frequency  one of the (m + 2)^2 elements of a transformed tile; stored as a matrix
//            [tiles, channels] per frequency
// panel      two packs of columns of a matrix, [depth][kPanel], as packed weights are stored
// part       consecutive images of the batch that one work item processes, with its own sums
// group      a few images of a part that go through the whole network together
// run        consecutive images of a group, or tiles, that go through one layer together
//
// Images are independent until the loss, which is a mean over images. A group therefore goes
// forward and backward through the whole network while its data is in cache. Only the sums over
// images outlive a group.
//
// A call has three steps, each run in parallel over the parts: copy the parameters into the layouts
// that the passes read; walk over each part's images with its own sums; copy the sums back into the
// flat order.
//
// No include guard: included inside the namespace of each instruction set, after layer_passes.h and
// classifier.h.

template <class T>
class Walk {
 public:
  explicit Walk(const StudentCall<T>& call)
      : call_(call),
        network_(*call.network),
        plan_(network_, &call.memory->lists),
        group_(std::min(plan_.group, ceil_div(call.batch.size, call.parts))) {
    std::pmr::memory_resource* lists = &call.memory->lists;
    // Lay out the buffers twice: once to count the memory, once to place them.
    Memory<T> counting(nullptr, lists);
    CallBuffers<T>(call, plan_, group_, counting);
    const int64_t bytes = counting.used() * int64_t{sizeof(T)};
    Memory<T> memory(static_cast<T*>(call.memory->pages.reserve(bytes)), lists);
    buffers_.emplace(call, plan_, group_, memory);
    if (call.tape != nullptr) {
      Memory<T> kept(call.tape, lists);
      tape_.emplace(plan_, call.batch.size, kept);
    }
  }

  void run() {
    Laps& laps = buffers_->parts[0].laps = Laps(true);
    clear_shared();
    // Either all parts share one packed copy of the parameters, or each part packs its own just
    // before its walk.
    if (!plan_.own_parameters) {
      (*call_.in_parallel)(call_.parts, [&](int64_t part) {
        pack(buffers_->theta[0], buffers_->theta_tangent[0], part, call_.parts);
      });
      laps.lap(Pass::kPack);
    }
    (*call_.in_parallel)(call_.parts, [&](int64_t part) {
      if (plan_.own_parameters) {
        pack(buffers_->theta[part], buffers_->theta_tangent[part], 0, 1);
        buffers_->parts[part].laps.lap(Pass::kPack);
      }
      walk_part(part);
    });
    laps.lap(Pass::kWait);
    if (only_logits()) return;
    (*call_.in_parallel)(call_.parts, [&](int64_t part) { unpack(part); });
    write_loss();
    laps.lap(Pass::kUnpack);
  }

 private:
  using Layer = LayerPlan<T>;
  bool only_logits() const { return call_.pass == StudentPass::kLogits; }
  int64_t layer_count() const { return static_cast<int64_t>(plan_.layers.size()); }

  // Calls body(item) for the items of one share, out of `shares` shares of `count` items.
  template <class Body>
  static void for_items(int64_t share, int64_t shares, int64_t count, const Body& body) {
    for (int64_t item = share; item < count; item += shares) body(item);
  }

  void clear_shared() {
    int64_t most = 0;
    for (const Layer& layer : plan_.layers) most = std::max({most, layer.affine(), layer.width});
    std::fill_n(buffers_->zeros, most, T(0));
  }

  // Step 1: pack the parameters.

  void pack(const Packed<T>& theta, const Packed<T>& tangent, int64_t share, int64_t shares) const {
    pack_parameters(call_.theta, theta, T(1), share, shares);
    if (call_.theta_tangent != nullptr) {
      pack_parameters(call_.theta_tangent, tangent, T(0), share, shares);
    }
  }

  // `none` is the weight that a norm without parameters gets.
  void pack_parameters(const T* flat, const Packed<T>& packed, T none, int64_t share,
                       int64_t shares) const {
    for (int64_t l = 0; l < layer_count(); ++l) {
      const Layer& layer = plan_.layers[l];
      const PackedLayer<T>& to = packed.layers[l];
      const auto& [convolution, norm] = *layer.block;
      const int64_t weight = convolution.weight.offset;
      for_items(share, shares, pack_items(layer),
                [&](int64_t item) { pack_layer(layer, flat + weight, to, item); });
      // The small parameters of a layer are not split between shares.
      if (l % shares != share) continue;
      if (convolution.bias_is_inert) {
        std::fill_n(to.bias, layer.width, T(0));
      } else {
        to_blocks(flat + convolution.bias.offset, layer.channels, 1, layer.width, to.bias);
      }
      if (norm.weight.size > 0) {
        const int64_t pixels = norm.weight.size / layer.channels;
        to_blocks(flat + norm.weight.offset, layer.channels, pixels, layer.width, to.norm_weight);
        to_blocks(flat + norm.bias.offset, layer.channels, pixels, layer.width, to.norm_bias);
      } else {
        std::fill_n(to.norm_weight, layer.affine(), none);
        std::fill_n(to.norm_bias, layer.affine(), T(0));
      }
    }
    for_items(share, shares, network_.num_classes, [&](int64_t k) {
      to_blocks(flat + network_.classifier_weight.offset + k * network_.features, network_.width,
                network_.feature_pixels, plan_.layers.back().width,
                packed.classifier + k * plan_.features);
    });
    if (share == 0) {
      std::copy_n(flat + network_.classifier_bias.offset, network_.num_classes,
                  packed.classifier_bias);
    }
  }

  // Step 2: the walk over the images.

  // The images of one group and the location of their planes. Owns nothing.
  struct Group {
    int64_t first, count;
    const PartBuffers<T>* part;
    const LayerBuffers<T>* layers;
    T* features;
    bool started;  // the sums already hold earlier groups
  };

  void walk_part(int64_t index) {
    PartBuffers<T>& part = buffers_->parts[index];
    const int64_t begin = call_.batch.size * index / call_.parts;
    const int64_t end = call_.batch.size * (index + 1) / call_.parts;
    clear(part);
    part.laps.lap(Pass::kClear);
    const int64_t groups = ceil_div(end - begin, group_);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = begin + (end - begin) * g / groups;
      const int64_t count = begin + (end - begin) * (g + 1) / groups - first;
      if (tape_) put_on_tape(part, first, count);
      const Group group{first, count, &part, part.layers.data(), part.features, g > 0};
      read_images(group);
      part.laps.lap(Pass::kRead);
      for (int64_t l = 0; l < layer_count(); ++l) forward(group, l);
      classify(group);
      part.laps.lap(Pass::kClassify);
      if (only_logits()) continue;
      for (int64_t l = layer_count(); l-- > 0;) backward(group, l);
      write_image_gradients(group);
      part.laps.lap(Pass::kWrite);
    }
  }

  // Zeroes the sums that passes add to from the start, and the input planes, because no pass writes
  // their padding. The first group overwrites the other sums.
  void clear(const PartBuffers<T>& part) {
    for (int64_t l = 0; l < layer_count(); ++l) {
      const Layer& layer = plan_.layers[l];
      const LayerBuffers<T>& buffers = part.layers[l];
      const LayerSums<T>& sums = part.sums[l];
      std::fill_n(sums.bias, layer.width, T(0));
      std::fill_n(sums.norm_weight, layer.affine(), T(0));
      std::fill_n(sums.norm_bias, layer.affine(), T(0));
      for (T* planes : {buffers.input, buffers.input_tangent}) {
        if (planes != nullptr) std::fill_n(planes, group_ * layer.in_plane(), T(0));
      }
    }
    std::fill_n(part.classifier_bias, network_.num_classes, T(0));
  }

  // Points the part's buffers at the tape, for the images [first, first + count). A gradient call
  // writes the tape, so it zeroes the input planes for their padding.
  void put_on_tape(PartBuffers<T>& part, int64_t first, int64_t count) const {
    for (int64_t l = 1; l < layer_count(); ++l) {
      const Layer& layer = plan_.layers[l];
      const typename Tape<T>::Layer& kept = tape_->layers[l];
      LayerBuffers<T>& buffers = part.layers[l];
      buffers.input = kept.input + first * layer.in_plane();
      buffers.xh = kept.xh + first * layer.plane();
      buffers.rstd = kept.rstd + first * layer.width;
      buffers.grad_input = kept.grad_input + first * layer.in_plane();
      if (!call_.tangent()) std::fill_n(buffers.input, count * layer.in_plane(), T(0));
    }
    part.features = tape_->features + first * plan_.features;
  }

  void read_images(const Group& group) {
    const PlaneCopy<T> copy = plan_.layers[0].input_copy();
    const LayerBuffers<T>& b = group.layers[0];
    copy.read(call_.batch.images, group.first, group.count, b.input);
    if (call_.images_tangent == nullptr) return;
    copy.read(call_.images_tangent, group.first, group.count, b.input_tangent);
  }

  // The operands of the norm passes for one image of a layer.
  NormPass<T> norm_pass(const Group& group, int64_t l, int64_t image) const {
    const Layer& layer = plan_.layers[l];
    const LayerBuffers<T>& b = group.layers[l];
    const PackedLayer<T>& theta = group.part->theta->layers[l];
    const LayerSums<T>& sums = group.part->sums[l];
    const bool last = l + 1 == layer_count();
    const int64_t plane = image * layer.plane(), channels = image * layer.width;
    const int64_t out = image * plan_.out_plane(l) + plan_.out_origin(l);
    const LayerBuffers<T>& next = group.layers[last ? l : l + 1];
    const int64_t out_side = plan_.out_side(l);
    NormPass<T> p{};
    p.shape = &layer.block->norm.shape;
    p.width = layer.width;
    p.pixel = kLanes<T>;
    p.row = layer.side;
    p.plane = layer.side * layer.side * kLanes<T>;
    p.means = group.part->norm_means;
    p.weight = theta.norm_weight;
    p.bias = theta.norm_bias;
    p.rstd = b.rstd + channels;
    p.y = p.xh = b.xh + plane;
    p.out = (last ? group.features : next.input) + out;
    p.out_row = out_side;
    p.out_plane = out_side * out_side * kLanes<T>;
    p.grad_out = (last ? group.part->grad_features : next.grad_input) + out;
    p.grad_y = b.y + plane;
    p.grad_weight = sums.norm_weight;
    p.grad_bias = sums.norm_bias;
    // A bias that a norm subtracts again has no gradient.
    p.grad_conv_bias = layer.block->convolution.bias_is_inert ? nullptr : sums.bias;
    if (call_.tangent()) {
      const bool moves = call_.theta_tangent != nullptr;
      p.weight_tangent = moves ? group.part->theta_tangent->layers[l].norm_weight : buffers_->zeros;
      p.bias_tangent = moves ? group.part->theta_tangent->layers[l].norm_bias : buffers_->zeros;
      p.projection = b.projection + channels;
      p.y_tangent = p.xh_tangent = p.grad_y_tangent = b.y_tangent + plane;
      p.out_tangent = (last ? group.part->features_tangent : next.input_tangent) + out;
      p.grad_out_tangent =
          (last ? group.part->grad_features_tangent : next.grad_input_tangent) + out;
      // With a tape, only the first layer runs its primal pass again, to compute xh. Its output is
      // on the tape already, so the copy goes to out_tangent, which the tangent pass overwrites.
      if (tape_) p.out = p.out_tangent;
    }
    return p;
  }

  // Calls body(first, count) for the runs of images that go through layer l together.
  template <class Body>
  void for_runs(const Group& group, int64_t l, const Body& body) {
    const int64_t most = plan_.layers[l].images;
    for (int64_t first = 0; first < group.count; first += most) {
      body(first, std::min(most, group.count - first));
    }
  }

  void forward(const Group& group, int64_t l) {
    const Layer& layer = plan_.layers[l];
    const LayerBuffers<T>& b = group.layers[l];
    const bool kept = call_.tangent() && tape_ && l > 0;
    for_runs(group, l, [&](int64_t first, int64_t count) {
      const T* input = b.input + first * layer.in_plane();
      // A tape has the primal results of all layers but the first.
      if (!kept) {
        const PackedLayer<T>& theta = group.part->theta->layers[l];
        convolve<2>(layer, count, 1, {{input, theta.primal}, {}}, theta.bias, *group.part,
                    b.xh + first * layer.plane());
        for (int64_t i = first; i < first + count; ++i) norm_forward(norm_pass(group, l, i));
        group.part->laps.lap(Pass::kNorm, l);
      }
      if (!call_.tangent()) return;
      convolve_tangent(group, l, first, count);
      for (int64_t i = first; i < first + count; ++i) norm_tangent(norm_pass(group, l, i));
      group.part->laps.lap(Pass::kNorm, l);
    });
  }

  void convolve_tangent(const Group& group, int64_t l, int64_t first, int64_t count) {
    const Layer& layer = plan_.layers[l];
    const LayerBuffers<T>& b = group.layers[l];
    ConvolutionTerm<T> term[2];
    int terms = 0;
    const T* bias = buffers_->zeros;
    if (b.input_tangent != nullptr) {
      term[terms++] = {b.input_tangent + first * layer.in_plane(),
                       group.part->theta->layers[l].weight};
    }
    if (call_.theta_tangent != nullptr) {
      const PackedLayer<T>& tangent = group.part->theta_tangent->layers[l];
      term[terms++] = {b.input + first * layer.in_plane(), tangent.weight};
      bias = tangent.bias;
    }
    T* out = b.y_tangent + first * layer.plane();
    convolve(layer, count, terms, term, bias, *group.part, out);
  }

  // Classifier and loss, forward and backward.
  void classify(const Group& group) {
    const int64_t classes = network_.num_classes, size = plan_.features, count = group.count;
    const int64_t row = group.first * classes;
    const PartBuffers<T>& part = *group.part;
    const Packed<T>& theta = *part.theta;
    T* logits = (only_logits() ? call_.logits : buffers_->logits) + row;
    T* grad = buffers_->grad_logits + row;
    set_rows(count, classes, theta.classifier_bias, logits);
    add_logits(count, group.features, size, theta.classifier, classes, logits);
    if (only_logits()) return;
    if (!call_.tangent()) {
      loss_gradient(group.first, group.first + count);
      add_rows(count, classes, grad, part.classifier_bias);
      classifier_gradient(count, size, classes, 1, {{grad, group.features}, {}}, part.classifier,
                          group.started);
      features_gradient(count, size, classes, 1, {{grad, theta.classifier}, {}},
                        part.grad_features);
      return;
    }
    // Logits are bilinear in features and weight, so their tangent and the gradients' tangents are
    // sums of two terms.
    T* logits_tangent = buffers_->logits_tangent + row;
    T* grad_tangent = buffers_->grad_logits_tangent + row;
    const T* weight_tangent = nullptr;
    std::fill_n(logits_tangent, count * classes, T(0));
    if (call_.theta_tangent != nullptr) {
      const Packed<T>& tangent = *part.theta_tangent;
      weight_tangent = tangent.classifier;
      set_rows(count, classes, tangent.classifier_bias, logits_tangent);
      add_logits(count, group.features, size, weight_tangent, classes, logits_tangent);
    }
    add_logits(count, part.features_tangent, size, theta.classifier, classes, logits_tangent);
    loss_gradient_tangent(group.first, group.first + count);
    add_rows(count, classes, grad_tangent, part.classifier_bias);
    classifier_gradient(count, size, classes, 2,
                        {{grad_tangent, group.features}, {grad, part.features_tangent}},
                        part.classifier, group.started);
    features_gradient(count, size, classes, 1, {{grad, theta.classifier}, {}}, part.grad_features);
    features_gradient(count, size, classes, weight_tangent == nullptr ? 1 : 2,
                      {{grad_tangent, theta.classifier}, {grad, weight_tangent}},
                      part.grad_features_tangent);
  }

  static void add_rows(int64_t count, int64_t classes, const T* rows, T* sum) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < classes; ++k) sum[k] += rows[i * classes + k];
    }
  }

  SoftCrossEntropyInputs<T> loss_inputs() const {
    const StudentBatch<T>& batch = call_.batch;
    return {batch.size,       network_.num_classes, batch.scale,  nullptr,
            buffers_->logits, batch.index,          batch.target, batch.loss};
  }

  // The loss kSumLogits: sums the logits of each image, or their tangents, into `rows`. Its
  // gradient in every logit is 1.
  void sum_logits(const T* logits, int64_t begin, int64_t end) {
    const int64_t classes = network_.num_classes;
    for (int64_t i = begin; i < end; ++i) {
      T sum = T(0);
      for (int64_t k = 0; k < classes; ++k) sum += logits[i * classes + k];
      buffers_->rows[i] = sum;
    }
    std::fill(buffers_->grad_logits + begin * classes, buffers_->grad_logits + end * classes, T(1));
  }

  void loss_gradient(int64_t begin, int64_t end) {
    if (call_.batch.loss == StudentLoss::kSumLogits)
      return sum_logits(buffers_->logits, begin, end);
    soft_cross_entropy_forward(SoftCrossEntropyForward<T>{loss_inputs(), buffers_->rows, nullptr},
                               begin, end);
    soft_cross_entropy_backward(
        SoftCrossEntropyBackward<T>{loss_inputs(), buffers_->grad_logits, call_.grad_target}, begin,
        end);
  }

  void loss_gradient_tangent(int64_t begin, int64_t end) {
    if (call_.batch.loss == StudentLoss::kSumLogits) {
      sum_logits(buffers_->logits_tangent, begin, end);
      const int64_t classes = network_.num_classes;
      std::fill(buffers_->grad_logits_tangent + begin * classes,
                buffers_->grad_logits_tangent + end * classes, T(0));
      return;
    }
    soft_cross_entropy_backward(
        SoftCrossEntropyBackward<T>{loss_inputs(), buffers_->grad_logits, nullptr}, begin, end);
    soft_cross_entropy_backward_tangent(
        SoftCrossEntropyBackwardTangent<T>{loss_inputs(), buffers_->logits_tangent,
                                           call_.target_tangent, buffers_->rows, nullptr,
                                           buffers_->grad_logits_tangent, call_.grad_target},
        begin, end);
  }

  void backward(const Group& group, int64_t l) {
    const Layer& layer = plan_.layers[l];
    const LayerBuffers<T>& b = group.layers[l];
    const bool kept = call_.tangent() && tape_ && l > 0;  // grad_input is on the tape
    bool started = group.started;
    for_runs(group, l, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        const NormPass<T> pass = norm_pass(group, l, i);
        if (call_.tangent()) {
          norm_backward_tangent(pass);
          clear_margin(layer, pass.grad_y_tangent);
        } else {
          norm_backward(pass);
        }
        clear_margin(layer, pass.grad_y);
      }
      group.part->laps.lap(Pass::kNormBackward, l);
      const int64_t in_at = first * layer.in_plane(), at = first * layer.plane();
      BackwardTerms<T> terms{};
      terms.grad_y = b.y + at;
      terms.input = b.input + in_at;
      terms.weight = &group.part->theta->layers[l];
      if (b.grad_input != nullptr && !kept) terms.grad_input = b.grad_input + in_at;
      if (call_.tangent()) {
        terms.grad_y_tangent = b.y_tangent + at;
        if (b.input_tangent != nullptr) terms.input_tangent = b.input_tangent + in_at;
        if (call_.theta_tangent != nullptr) {
          terms.weight_tangent = &group.part->theta_tangent->layers[l];
        }
        terms.grad_input_tangent = b.grad_input_tangent + in_at;
      }
      // The passes add to the input gradients, because tiles overlap.
      for (T* planes : {terms.grad_input, terms.grad_input_tangent}) {
        if (planes != nullptr) std::fill_n(planes, count * layer.in_plane(), T(0));
      }
      group.part->laps.lap(Pass::kClear, l);
      T* sum = group.part->sums[l].weight;
      convolution_backward(layer, terms, *group.part, count, sum, started);
      started = true;
    });
  }

  // Zeroes a gradient plane outside the image, where whole tiles reach beyond it.
  static void clear_margin(const Layer& layer, T* plane) {
    if (layer.side == layer.size) return;
    for (int64_t row = 0; row < layer.width / kLanes<T> * layer.side; ++row) {
      T* values = plane + row * layer.side * kLanes<T>;
      const int64_t used = row % layer.side < layer.size ? layer.size : 0;
      std::fill(values + used * kLanes<T>, values + layer.side * kLanes<T>, T(0));
    }
  }

  void write_image_gradients(const Group& group) {
    if (call_.grad_images == nullptr) return;
    const LayerBuffers<T>& b = group.layers[0];
    plan_.layers[0].input_copy().write(call_.tangent() ? b.grad_input_tangent : b.grad_input,
                                       group.first, group.count, call_.grad_images);
  }

  // Step 3: add up the parts' sums and write the gradient.

  // All parts' copies of a sum, given the one in the first part's buffers.
  PartSums<T> of_parts(const T* first) const { return {first, buffers_->part_size, call_.parts}; }

  void unpack(int64_t part) {
    const PartBuffers<T>& first = buffers_->parts[0];
    for (int64_t l = 0; l < layer_count(); ++l) {
      const Layer& layer = plan_.layers[l];
      const auto& [convolution, norm] = *layer.block;
      const PartSums<T> weights = of_parts(first.sums[l].weight);
      T* const to = call_.grad_theta + convolution.weight.offset;
      for_items(part, call_.parts, ceil_div(layer.channels, kLanes<T>),
                [&](int64_t item) { unpack_block(layer, weights, to, item); });
      // The small sums of a layer are not split between work items.
      if (l % call_.parts != part) continue;
      const auto add_up = [&](T* LayerSums<T>::* member, const Slice& slice, int64_t pixels) {
        from_blocks(of_parts(first.sums[l].*member), layer.channels, pixels,
                    call_.grad_theta + slice.offset);
      };
      add_up(&LayerSums<T>::bias, convolution.bias, 1);
      if (norm.weight.size == 0) continue;
      const int64_t pixels = norm.weight.size / layer.channels;
      add_up(&LayerSums<T>::norm_weight, norm.weight, pixels);
      add_up(&LayerSums<T>::norm_bias, norm.bias, pixels);
    }
    for_items(part, call_.parts, network_.num_classes, [&](int64_t k) {
      from_blocks(of_parts(first.classifier + k * plan_.features), network_.width,
                  network_.feature_pixels,
                  call_.grad_theta + network_.classifier_weight.offset + k * network_.features);
    });
    if (part != 0) return;
    const PartSums<T> biases = of_parts(first.classifier_bias);
    for (int64_t k = 0; k < network_.num_classes; ++k) {
      T sum = T(0);
      for (int64_t p = 0; p < biases.count; ++p) sum += biases.of(p)[k];
      call_.grad_theta[network_.classifier_bias.offset + k] = sum;
    }
  }

  void write_loss() { sum_rows(buffers_->rows, call_.batch.size, call_.loss); }

  const StudentCall<T>& call_;
  const Network& network_;
  const WalkPlan<T> plan_;
  const int64_t group_;  // images that go through the network together
  std::optional<CallBuffers<T>> buffers_;
  std::optional<Tape<T>> tape_;
};
