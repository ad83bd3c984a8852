// The convolution of one layer on the planes of a few images: the forward pass or its tangent, and
// the gradients in input and weight or their tangents.
//
// No include guard: included inside the namespace of each instruction set, after tiles.h, pixels.h
// and buffers.h.

// One convolution of a sum. A convolution is linear in its input and in its weight, so its tangent
// is a sum of two convolutions. The tangents of the gradients are sums of two products in the same
// way.
template <class T>
struct ConvolutionTerm {
  const T* planes;
  const T* weight;
};

template <int m, class T>
void read_input_of(const LayerPlan<T>& plan, const T* planes, int64_t first, int64_t count, T* v,
                   int64_t step) {
  if (plan.narrow_input()) {
    read_pixels<m>(plan, planes, first, count, v, step);
  } else {
    read_input<m>(plan, planes, first, count, v, step);
  }
}

// Forward pass of one image with narrow input, one row of tiles at a time.
template <int m, class T>
void convolve_image(const LayerPlan<T>& plan, int terms, const ConvolutionTerm<T> (&term)[2],
                    const T* bias, const PassBuffers<T>& part, T* out) {
  const int64_t count = plan.tiles_side(m);
  const int64_t step = LayerPlan<T>::step(count, kPixelLanes);
  PixelTerms<T> pixels{terms, {part.v[0], part.v[1]}, {term[0].weight, term[1].weight}};
  for (int64_t row = 0; row < count; ++row) {
    for (int i = 0; i < terms; ++i) {
      read_pixels<m>(plan, term[i].planes, row * count, count, part.v[i], step);
    }
    convolve_pixels<m>(plan, pixels, step, count, bias, out + row * m * plan.side * kLanes<T>);
  }
  part.laps.lap(Pass::kProduct, plan.index);
}

template <int m, class T>
void convolve(const LayerPlan<T>& plan, int64_t images, int terms,
              const ConvolutionTerm<T> (&term)[2], const T* bias, const PassBuffers<T>& part,
              T* out) {
  if (plan.narrow_input()) {
    for (int64_t i = 0; i < images; ++i) {
      const ConvolutionTerm<T> of_image[2] = {
          {term[0].planes + i * plan.in_plane(), term[0].weight},
          {terms > 1 ? term[1].planes + i * plan.in_plane() : nullptr, term[1].weight}};
      convolve_image<m>(plan, terms, of_image, bias, part, out + i * plan.plane());
    }
    return;
  }
  // Transform a slab of tiles, multiply once per frequency, transform back.
  const int64_t total = images * plan.tiles(m), slab = plan.slab(m, images);
  for (int64_t first = 0; first < total; first += slab) {
    const int64_t count = std::min(slab, total - first);
    const int64_t in_step = LayerPlan<T>::step(count, plan.in_width);
    const int64_t step = LayerPlan<T>::step(count, plan.width);
    for (int i = 0; i < terms; ++i) {
      read_input_of<m>(plan, term[i].planes, first, count, part.v[i], in_step);
    }
    part.laps.lap(Pass::kTransform, plan.index);
    for (int64_t f = 0; f < LayerPlan<T>::frequencies(m); ++f) {
      Product<T> p = product_with_panels(count, plan.in_channels, plan.in_width, plan.width,
                                         part.products + f * step, plan.width);
      p.terms = terms;
      for (int i = 0; i < terms; ++i) {
        p.term[i] = {part.v[i] + f * in_step, term[i].weight + f * plan.weight_step()};
      }
      product(p);
    }
    part.laps.lap(Pass::kProduct, plan.index);
    write_output<m>(plan, part.products, step, bias, first, count, out);
    part.laps.lap(Pass::kTransformBack, plan.index);
  }
}

// The same by the layer's tile, that of all convolutions but the primal forward one.
template <class T>
void convolve(const LayerPlan<T>& plan, int64_t images, int terms,
              const ConvolutionTerm<T> (&term)[2], const T* bias, const PassBuffers<T>& part,
              T* out) {
  if (plan.tile == 2) return convolve<2>(plan, images, terms, term, bias, part, out);
  convolve<4>(plan, images, terms, term, bias, part, out);
}

// Operands and results of the backward pass of one layer.
template <class T>
struct BackwardTerms {
  const T *grad_y, *grad_y_tangent;              // grad_y_tangent null: gradient only
  const T *input, *input_tangent;                // tangent null: zero
  const PackedLayer<T>*weight, *weight_tangent;  // tangent null: zero
  T* grad_input;                                 // added to; null: not wanted
  T* grad_input_tangent;                         // added to; null: not wanted
};

template <int m, class T>
class ConvolutionBackward {
 public:
  ConvolutionBackward(const LayerPlan<T>& plan, const BackwardTerms<T>& terms,
                      const PassBuffers<T>& part)
      : plan_(plan), terms_(terms), part_(part) {}

  // Adds the gradient of the weight, in frequencies, to `sum`; overwrites `sum` if `accumulate` is
  // false.
  void run(int64_t images, T* sum, bool accumulate) {
    const int64_t total = images * plan_.tiles(m), slab = plan_.slab(m, images);
    for (int64_t first = 0; first < total; first += slab) {
      first_ = first;
      count_ = std::min(slab, total - first);
      in_step_ = LayerPlan<T>::step(count_, plan_.in_width);
      step_ = LayerPlan<T>::step(count_, plan_.width);
      read_input_of<m>(plan_, terms_.input, first_, count_, part_.v[0], in_step_);
      if (plan_.narrow_input() && terms_.input_tangent == nullptr) {
        pixel_gradient(sum, accumulate || first > 0);
      } else {
        full_gradient(sum, accumulate || first > 0);
      }
      if (terms_.grad_input != nullptr) {
        input_gradient(1, {{part_.z[0], weight_of(terms_.weight)}, {}}, terms_.grad_input);
      }
      if (terms_.grad_input_tangent != nullptr) {
        const bool two = terms_.weight_tangent != nullptr;
        input_gradient(two ? 2 : 1,
                       {{part_.z[1], weight_of(terms_.weight)},
                        {part_.z[0], two ? weight_of(terms_.weight_tangent) : nullptr}},
                       terms_.grad_input_tangent);
      }
    }
  }

 private:
  bool tangent() const { return terms_.grad_y_tangent != nullptr; }
  const T* weight_of(const PackedLayer<T>* packed) const {
    return plan_.narrow_input() ? packed->weight : packed->turned;
  }

  // Weight gradient for narrow input whose tangent is zero: transforms the gradient and multiplies
  // it in one loop. Writes Z to part_.z where the input gradients may need it.
  void pixel_gradient(T* sum, bool accumulate) {
    if (tangent()) read_gradient<m>(plan_, terms_.grad_y, first_, count_, part_.z[0], step_);
    part_.laps.lap(Pass::kTransformGrad, plan_.index);
    const bool z = tangent() || terms_.grad_input != nullptr;
    pixel_weight_gradient<m>(
        plan_, PixelWeightGradient<T>{
                   tangent() ? terms_.grad_y_tangent : terms_.grad_y, first_, count_, part_.v[0],
                   in_step_, z ? part_.z[tangent() ? 1 : 0] : nullptr, step_, sum, accumulate});
    part_.laps.lap(Pass::kWeightProduct, plan_.index);
  }

  void full_gradient(T* sum, bool accumulate) {
    read_gradient<m>(plan_, terms_.grad_y, first_, count_, part_.z[0], step_);
    if (tangent()) {
      read_gradient<m>(plan_, terms_.grad_y_tangent, first_, count_, part_.z[1], step_);
    }
    if (terms_.input_tangent != nullptr) {
      read_input_of<m>(plan_, terms_.input_tangent, first_, count_, part_.v[1], in_step_);
    }
    part_.laps.lap(Pass::kTransformGrad, plan_.index);
    weight_gradient(sum, accumulate);
    part_.laps.lap(Pass::kWeightProduct, plan_.index);
  }

  void weight_gradient(T* sum, bool accumulate) {
    const bool two = terms_.input_tangent != nullptr;
    for (int64_t f = 0; f < LayerPlan<T>::frequencies(m); ++f) {
      const int64_t in_at = f * in_step_, at = f * step_;
      Product<T> p = product_of_columns(plan_.in_channels, count_, plan_.in_width, plan_.width,
                                        sum + f * plan_.gradient_step(), accumulate);
      p.terms = two ? 2 : 1;
      p.term[0] = {part_.v[0] + in_at, part_.z[tangent() ? 1 : 0] + at};
      p.term[1] = {part_.v[1] + in_at, part_.z[0] + at};
      product(p);
    }
  }

  void input_gradient(int terms, const Factors<T> (&term)[2], T* planes) {
    const int64_t weight_step = plan_.narrow_input() ? plan_.weight_step() : plan_.turned_step();
    for (int64_t f = 0; f < LayerPlan<T>::frequencies(m); ++f) {
      Factors<T> factors[2] = {};
      for (int i = 0; i < terms; ++i) {
        factors[i] = {term[i].a + f * step_, term[i].b + f * weight_step};
      }
      T* to = part_.products + f * in_step_;
      if (plan_.narrow_input()) {
        pixel_product(PixelProduct<T>{
            count_, plan_.width, plan_.in_channels, terms, {factors[0], factors[1]}, to});
      } else {
        Product<T> p = product_with_panels(count_, plan_.channels, plan_.width, plan_.in_width, to,
                                           plan_.in_width);
        p.terms = terms;
        for (int i = 0; i < terms; ++i) p.term[i] = factors[i];
        product(p);
      }
    }
    part_.laps.lap(Pass::kInputProduct, plan_.index);
    if (plan_.narrow_input()) {
      add_input_gradient<m, Pixel<T>>(plan_, part_.products, in_step_, first_, count_, planes);
    } else {
      add_input_gradient<m, Pack<T>>(plan_, part_.products, in_step_, first_, count_, planes);
    }
    part_.laps.lap(Pass::kTransformGradBack, plan_.index);
  }

  const LayerPlan<T>& plan_;
  const BackwardTerms<T>& terms_;
  const PassBuffers<T>& part_;
  int64_t first_ = 0, count_ = 0, in_step_ = 0, step_ = 0;
};

// Sets `sum` where `accumulate` is false, adds to it where it is true.
template <class T>
void convolution_backward(const LayerPlan<T>& plan, const BackwardTerms<T>& terms,
                          const PassBuffers<T>& part, int64_t images, T* sum, bool accumulate) {
  if (plan.tile == 2) {
    return ConvolutionBackward<2, T>(plan, terms, part).run(images, sum, accumulate);
  }
  ConvolutionBackward<4, T>(plan, terms, part).run(images, sum, accumulate);
}
