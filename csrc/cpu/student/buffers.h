// The memory layout of one call.
//
// No include guard: included inside the namespace of each instruction set, after weights.h.

// A bump allocator over memory that it does not own; every piece starts on a cache line. If `base`
// is null it only counts, so that the same code computes the required size. Vectors of the pieces
// get their memory from `lists`.
template <class T>
class Memory {
 public:
  Memory(T* base, std::pmr::memory_resource* lists) : base_(base), lists_(lists) {}
  T* take(int64_t count) {
    constexpr int64_t line = 64 / sizeof(T);
    T* result = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(count, line) * line;
    return result;
  }
  T* take_if(bool wanted, int64_t count) { return wanted ? take(count) : nullptr; }
  int64_t used() const { return used_; }
  // An empty vector with room for `count` items.
  template <class Item>
  std::pmr::vector<Item> list(size_t count) const {
    std::pmr::vector<Item> result(lists_);
    result.reserve(count);
    return result;
  }

 private:
  T* base_;
  std::pmr::memory_resource* lists_;
  int64_t used_ = 0;
};

template <class T>
Packed<T> packed_parameters(const WalkPlan<T>& plan, Memory<T>& memory, const PackedParts& parts) {
  Packed<T> result{memory.template list<PackedLayer<T>>(plan.layers.size())};
  for (const LayerPlan<T>& layer : plan.layers) {
    PackedLayer<T> packed;
    const int64_t frequencies = LayerPlan<T>::frequencies(layer.tile);
    packed.primal = memory.take_if(parts.primal && (layer.first || !parts.first_primal_only),
                                   LayerPlan<T>::frequencies(2) * layer.weight_step());
    const bool same = packed.primal != nullptr && layer.tile == 2;
    packed.weight =
        same ? packed.primal : memory.take_if(parts.weight, frequencies * layer.weight_step());
    const bool turned = layer.first ? parts.turned_first && !layer.narrow_input() : parts.turned;
    packed.turned = memory.take_if(turned, frequencies * layer.turned_step());
    packed.bias = memory.take(layer.width);
    packed.norm_weight = memory.take(layer.affine());
    packed.norm_bias = memory.take(layer.affine());
    result.layers.push_back(packed);
  }
  result.classifier = memory.take(plan.network->num_classes * plan.features);
  result.classifier_bias = memory.take(plan.network->num_classes);
  return result;
}

// Results that a gradient call leaves for the derivative call on the same batch and parameters: all
// of the primal pass but its first layer, which is as quickly computed again as read. The caller
// owns the memory.
template <class T>
struct Tape {
  struct Layer {
    T *input = nullptr, *xh = nullptr, *rstd = nullptr, *grad_input = nullptr;
  };
  Tape(const WalkPlan<T>& plan, int64_t batch, Memory<T>& memory)
      : layers(memory.template list<Layer>(plan.layers.size())) {
    for (const LayerPlan<T>& layer : plan.layers) {
      Layer kept;
      if (!layer.first) {
        kept.input = memory.take(batch * layer.in_plane());
        kept.xh = memory.take(batch * layer.plane());
        kept.rstd = memory.take(batch * layer.width);
        kept.grad_input = memory.take(batch * layer.in_plane());
      }
      layers.push_back(kept);
    }
    features = memory.take(batch * plan.features);
  }
  std::pmr::vector<Layer> layers;
  T* features;
};

// Planes of one layer for the images of one group, and the norm values per image [width]. Null
// where the call does not need them. The forward convolution writes its output to `xh`, and the
// norm turns it into xh in place. The backward pass writes the gradient in that output to `y`,
// which is the same memory as `xh` unless xh is on the tape. `y_tangent` holds y', xh' and the
// tangent of the gradient in turn.
template <class T>
struct LayerBuffers {
  T *input = nullptr, *input_tangent = nullptr;
  T *y = nullptr, *xh = nullptr, *y_tangent = nullptr;
  T *rstd = nullptr, *projection = nullptr;
  T *grad_input = nullptr, *grad_input_tangent = nullptr;
};

// Sums over images: the gradients of one layer (weight in frequencies), or their tangents.
template <class T>
struct LayerSums {
  T *weight = nullptr, *bias = nullptr, *norm_weight = nullptr, *norm_bias = nullptr;
};

// Scratch memory of the layer passes (layer_passes.h).
template <class T>
struct PassBuffers {
  // Enlarges the sizes to fit a layer that processes `images` images at a time. Call take() after
  // the last layer.
  void add(const LayerPlan<T>& layer, int64_t images) {
    for (int m : {2, layer.tile}) {
      // The forward pass of a narrow first layer processes one row of tiles at a time.
      const int64_t rows = std::max(layer.slab(m, images), layer.tiles_side(m));
      const int64_t frequencies = LayerPlan<T>::frequencies(m);
      const int64_t in_size = frequencies * LayerPlan<T>::step(rows, layer.in_width);
      const int64_t size = frequencies * LayerPlan<T>::step(rows, layer.width);
      v_size = std::max(v_size, in_size);
      z_size = std::max(z_size, size);
      product_size = std::max({product_size, in_size, size});
    }
  }
  void take(Memory<T>& memory, int terms) {
    for (int i = 0; i < terms; ++i) {
      v[i] = memory.take(v_size);
      z[i] = memory.take(z_size);
    }
    products = memory.take(product_size);
  }

  T *v[2] = {}, *z[2] = {};  // [0] inputs v, gradients z; [1] their tangents
  T* products = nullptr;
  mutable Laps laps{false};
  int64_t v_size = 0, z_size = 0, product_size = 0;
};

// Memory of one part: its planes, sums and scratch. Pointers are null where the call does not need
// them.
template <class T>
struct PartBuffers : PassBuffers<T> {
  PartBuffers(const StudentCall<T>& call, const WalkPlan<T>& plan, int64_t group, Memory<T>& memory)
      : layers(memory.template list<LayerBuffers<T>>(plan.layers.size())),
        sums(memory.template list<LayerSums<T>>(plan.layers.size())) {
    const bool tangent = call.tangent(), tape = call.tape != nullptr;
    const bool back = call.pass != StudentPass::kLogits;
    int64_t widest = 0;
    for (const LayerPlan<T>& layer : plan.layers) {
      const bool input_tangent = tangent && (!layer.first || call.images_tangent != nullptr);
      const bool grad_input = layer.first ? !tangent && call.grad_images != nullptr : back && !tape;
      LayerBuffers<T> buffers;
      buffers.input = memory.take_if(layer.first || !tape, group * layer.in_plane());
      buffers.input_tangent = memory.take_if(input_tangent, group * layer.in_plane());
      buffers.y = memory.take(group * layer.plane());
      buffers.xh = buffers.y;
      buffers.y_tangent = memory.take_if(tangent, group * layer.plane());
      buffers.rstd = memory.take(group * layer.width);
      buffers.projection = memory.take_if(tangent, group * layer.width);
      buffers.grad_input = memory.take_if(grad_input, group * layer.in_plane());
      buffers.grad_input_tangent = memory.take_if(tangent, group * layer.in_plane());
      layers.push_back(buffers);

      LayerSums<T> sum;
      sum.weight =
          memory.take_if(back, LayerPlan<T>::frequencies(layer.tile) * layer.gradient_step());
      sum.bias = memory.take(layer.width);
      sum.norm_weight = memory.take(layer.affine());
      sum.norm_bias = memory.take(layer.affine());
      sums.push_back(sum);

      widest = std::max(widest, layer.width);
      this->add(layer, std::min(layer.images, group));
    }
    this->take(memory, tangent ? 2 : 1);
    norm_means = memory.take(kNormMeans * widest);
    features = memory.take_if(!tape, group * plan.features);
    features_tangent = memory.take_if(tangent, group * plan.features);
    grad_features = memory.take(group * plan.features);
    grad_features_tangent = memory.take_if(tangent, group * plan.features);
    classifier = memory.take(plan.network->num_classes * plan.features);
    classifier_bias = memory.take(plan.network->num_classes);
  }

  std::pmr::vector<LayerBuffers<T>> layers;
  std::pmr::vector<LayerSums<T>> sums;
  T* norm_means;
  T *features, *features_tangent, *grad_features, *grad_features_tangent;
  T *classifier, *classifier_bias;  // sums over images
  const Packed<T>*theta = nullptr, *theta_tangent = nullptr;
};

// Memory of a whole call, with the buffers of every part. All parts are laid out alike, so the same
// sum lies part_size values further on in the next part.
template <class T>
struct CallBuffers {
  CallBuffers(const StudentCall<T>& call, const WalkPlan<T>& plan, int64_t group, Memory<T>& memory)
      : theta(memory.template list<Packed<T>>(call.parts)),
        theta_tangent(memory.template list<Packed<T>>(call.parts)),
        parts(memory.template list<PartBuffers<T>>(call.parts)) {
    const bool image_gradients = call.tangent() || call.grad_images != nullptr;
    const bool kept = call.tangent() && call.tape != nullptr;
    for (int64_t i = 0; i < (plan.own_parameters ? call.parts : 1); ++i) {
      const bool back = call.pass != StudentPass::kLogits;
      theta.push_back(
          packed_parameters(plan, memory, {true, kept, image_gradients, back, image_gradients}));
      theta_tangent.push_back(Packed<T>{memory.template list<PackedLayer<T>>(0)});
      if (call.theta_tangent == nullptr) continue;
      theta_tangent.back() = packed_parameters(plan, memory, {false, false, true, true, true});
    }
    int64_t most = 0;
    for (const LayerPlan<T>& layer : plan.layers)
      most = std::max({most, layer.affine(), layer.width});
    zeros = memory.take(most);
    const int64_t logits_size = call.batch.size * plan.network->num_classes;
    logits = memory.take(logits_size);
    grad_logits = memory.take(logits_size);
    logits_tangent = memory.take_if(call.tangent(), logits_size);
    grad_logits_tangent = memory.take_if(call.tangent(), logits_size);
    rows = memory.take(call.batch.size);
    for (int64_t part = 0; part < call.parts; ++part) {
      const int64_t begin = memory.used();
      parts.emplace_back(call, plan, group, memory);
      part_size = memory.used() - begin;
      parts.back().theta = &theta[plan.own_parameters ? part : 0];
      parts.back().theta_tangent = &theta_tangent[plan.own_parameters ? part : 0];
    }
  }
  // One for all parts or, if plan.own_parameters is set, one per part.
  std::pmr::vector<Packed<T>> theta, theta_tangent;
  T* zeros;
  T *logits, *grad_logits, *logits_tangent, *grad_logits_tangent;
  T* rows;  // [B] the loss of each image, or its tangent
  std::pmr::vector<PartBuffers<T>> parts;
  int64_t part_size = 0;  // distance from one part's buffers to the next
};
