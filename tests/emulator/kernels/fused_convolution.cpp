#include "core/fused_convolution.h"

#include "core/half_operand.h"
#include "kernels/block_reference.h"

namespace kernels {
namespace {

using trajmatch::FusedConvolutionShape;
using trajmatch::ProductKind;

std::string text(const FusedConvolutionShape& shape, ProductKind kind) {
  const char* const kinds[] = {"tf32", "tf32x3", "fp16"};
  return "K" + std::to_string(shape.trajectories) + " B" + std::to_string(shape.batch) + " S" +
         std::to_string(shape.size) + " C" + std::to_string(shape.channels) + " " +
         kinds[static_cast<int>(kind)];
}

struct Choice {
  FusedConvolutionShape shape;
  ProductKind kind;
  int64_t tile;
  int terms;
  bool turned;
};

// Weights lie a gap apart, as parameters do.
constexpr int64_t kGap = 5;

// An operand of a product, prepared on the device as its kind wants it.
class Operand {
 public:
  // An activation of `size` numbers for every trajectory, or a weight `stride` apart.
  Operand(const std::vector<double>& values, const FusedConvolutionShape& shape, ProductKind kind,
          int64_t size, int64_t stride)
      : shape_(shape), kind_(kind), stride_(stride), values_(values) {
    if (kind != ProductKind::kFp16) return;
    magnitudes_.assign(shape.trajectories * trajmatch::kMagnitudes, std::nanf(""));
    trajmatch::cuda::launch_measure_magnitudes(
        {{{values_.get(), size, stride, magnitudes_.data()}}, 1, shape.trajectories},
        test_stream());
  }
  static Operand activation(const std::vector<double>& values, const FusedConvolutionShape& shape,
                            ProductKind kind) {
    const int64_t size = shape.batch * shape.image_size();
    Operand result(values, shape, kind, size, size);
    if (kind == ProductKind::kTf32x3) return result;
    const int64_t per_word = kind == ProductKind::kFp16 ? 2 : 1;
    result.prepared_.assign(shape.trajectories * size / per_word, std::nanf(""));
    trajmatch::cuda::launch_round_operands(
        {{{result.values_.get(), result.magnitudes(), result.prepared_.data()}},
         1,
         shape.trajectories,
         size},
        test_stream());
    return result;
  }
  static Operand weight(const std::vector<double>& values, const FusedConvolutionShape& shape,
                        ProductKind kind, int64_t stride, bool turned) {
    Operand result(values, shape, kind, shape.weight_size(), stride);
    const int64_t size = trajmatch::PackConvolution::packed_size(shape, kind);
    result.prepared_.assign(shape.trajectories * size, std::nanf(""));
    trajmatch::cuda::launch_pack_convolutions({{{shape, stride, turned, kind, result.values_.get(),
                                                 result.prepared_.data(), result.magnitudes()}},
                                               1},
                                              test_stream());
    return result;
  }

  const float* get() const { return prepared_.empty() ? values_.get() : prepared_.data(); }
  const float* magnitudes() const { return magnitudes_.empty() ? nullptr : magnitudes_.data(); }

 private:
  FusedConvolutionShape shape_;
  ProductKind kind_;
  int64_t stride_;
  Input<float> values_;
  std::vector<float> prepared_, magnitudes_;
};

// One or two terms, plain or turned. `exact` inputs are what products of the kind take unrounded.
struct Product {
  Product(const Choice& choice_, bool exact) : choice(choice_) {
    Random random(static_cast<unsigned>(choice.shape.channels + choice.terms));
    const FusedConvolutionShape& shape = choice.shape;
    for (int i = 0; i < choice.terms; ++i) {
      x.push_back(random.normal(shape.trajectories * shape.batch * shape.image_size(), 0.2));
      weight.push_back(random.normal(shape.trajectories * (shape.weight_size() + kGap)));
      if (exact) hold(i);
    }
  }

  void hold(int term) {
    x[term] = held_by(choice.kind, x[term], choice.shape.trajectories);
    weight[term] = held_by(choice.kind, weight[term], choice.shape.trajectories);
  }

  Choice choice;
  std::vector<std::vector<double>> x, weight;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const FusedConvolutionShape& shape = choice.shape;
    const int64_t images = shape.batch * shape.image_size(), total = shape.trajectories * images;
    const int64_t stride = shape.weight_size() + kGap;
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        trajmatch::FusedConvolution params{shape, choice.kind, choice.tile, choice.terms, {}, {}};
        std::vector<Operand> operands;
        for (int i = 0; i < choice.terms; ++i) {
          operands.push_back(Operand::activation(x[i], shape, choice.kind));
          operands.push_back(Operand::weight(weight[i], shape, choice.kind, stride, choice.turned));
        }
        for (int i = 0; i < choice.terms; ++i) {
          const Operand &input = operands[2 * i], &packed = operands[2 * i + 1];
          params.term[i] = {input.get(), packed.get(), input.magnitudes(), packed.magnitudes()};
        }
        params.y = out.add("y", total);
        trajmatch::cuda::launch_fused_convolution(params, test_stream());
        return out;
      }
    }
    std::vector<T> y(static_cast<size_t>(total));
    const BlockShape block{1, shape.batch, shape.size, shape.channels, 1, shape.channels};
    for (int64_t k = 0; k < shape.trajectories; ++k) {
      for (int term = 0; term < choice.terms; ++term) {
        const std::vector<T> in(x[term].begin() + k * images, x[term].begin() + (k + 1) * images);
        const std::vector<T> w(weight[term].begin() + k * stride,
                               weight[term].begin() + (k + 1) * stride);
        T* const to = &y[k * images];
        if (choice.turned) {
          block.for_products([&](int64_t i, int64_t j, int64_t o) { to[i] += in[o] * w[j]; });
        } else {
          block.for_products([&](int64_t i, int64_t j, int64_t o) { to[o] += in[i] * w[j]; });
        }
      }
    }
    out.add("y", widened(y));
    return out;
  }
};

// A block's passes, from exact statistics where they read any.
struct Block {
  Block(const BlockShape& shape, ProductKind kind_, int64_t tile_, bool moving_input)
      : data(shape, moving_input, kind_), references(data), kind(kind_), tile(tile_) {}

  FusedConvolutionShape shape() const {
    return {data.shape.trajectories, data.shape.batch, data.shape.in_size, data.shape.channels};
  }
  trajmatch::FusedNorm norm(const float* parameters) const {
    const BlockShape& block = data.shape;
    return {block.parameter_stride(), static_cast<float>(block.norm().eps),
            parameters + block.norm_weight_offset(), parameters + block.norm_bias_offset()};
  }
  Operand activation(const std::vector<double>& values) const {
    return Operand::activation(values, shape(), kind);
  }
  Operand weight(const std::vector<double>& parameters) const {
    return Operand::weight(parameters, shape(), kind, data.shape.parameter_stride(), false);
  }

  BlockData data;
  BlockReferences references;
  ProductKind kind;
  int64_t tile;
};

struct Forward {
  const Block& block;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Operand x = block.activation(block.data.x);
        const Operand weight = block.weight(block.data.parameters);
        const Input<float> parameters(block.data.parameters);
        const int64_t groups = block.references.exact.mean.size();
        float* const y = out.add("y", block.references.exact.y.size());
        float* const pooled = out.add("out", block.references.exact.out.size());
        float* const mean = out.add("mean", groups);
        trajmatch::cuda::launch_fused_block_forward(
            {{block.shape(),
              block.kind,
              block.tile,
              1,
              {{x.get(), weight.get(), x.magnitudes(), weight.magnitudes()}},
              y},
             block.norm(parameters.get()),
             pooled,
             mean,
             out.add("rstd", groups),
             rounds},
            test_stream());
        return out;
      }
    }
    const BlockReference<T>& reference = block.references.of<T>();
    out.add("y", widened(reference.y));
    out.add("out", widened(reference.out));
    out.add("mean", widened(reference.mean));
    out.add("rstd", widened(reference.rstd));
    return out;
  }
};

struct Tangent {
  const Block& block;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const bool moving = !block.data.x_tangent.empty();
        const Operand x = block.activation(block.data.x);
        const Operand x_tangent = block.activation(moving ? block.data.x_tangent : block.data.x);
        const Operand weight = block.weight(block.data.parameters);
        const Operand weight_tangent = block.weight(block.data.parameter_tangents);
        const Input<float> parameters(block.data.parameters);
        const Input<float> tangents(block.data.parameter_tangents);
        const Input<float> y(block.references.exact.y), mean(block.references.exact.mean),
            rstd(block.references.exact.rstd);
        const int64_t groups = block.references.exact.mean.size();
        float* const y_tangent = out.add("y_tangent", block.references.exact.y.size());
        float* const pooled = out.add("out_tangent", block.references.exact.out.size());
        float* const mean_tangent = out.add("mean_tangent", groups);
        const trajmatch::FusedNorm norm_tangent = block.norm(tangents.get());
        trajmatch::cuda::launch_fused_block_tangent(
            {{block.shape(),
              block.kind,
              block.tile,
              moving ? 2 : 1,
              {{x.get(), weight_tangent.get(), x.magnitudes(), weight_tangent.magnitudes()},
               {x_tangent.get(), weight.get(), x_tangent.magnitudes(), weight.magnitudes()}},
              y_tangent},
             block.norm(parameters.get()),
             norm_tangent.weight,
             norm_tangent.bias,
             y.get(),
             mean.get(),
             rstd.get(),
             pooled,
             mean_tangent,
             out.add("projection", groups),
             rounds},
            test_stream());
        return out;
      }
    }
    const BlockReference<T>& reference = block.references.of<T>();
    out.add("y_tangent", widened(reference.y_tangent));
    out.add("out_tangent", widened(reference.out_tangent));
    out.add("mean_tangent", widened(reference.mean_tangent));
    out.add("projection", widened(reference.projection));
    return out;
  }
};

struct BlockCase {
  BlockShape shape;
  ProductKind kind;
  int64_t tile;
  bool moving_input;
};

void check_block(const BlockCase& one) {
  const Block block(one.shape, one.kind, one.tile, one.moving_input);
  check_float(Forward{block});
  if (one.kind == ProductKind::kTf32x3) return;
  check_float(Tangent{block});
  if (one.kind != ProductKind::kTf32) return;
  check_rounds({"out"}, Forward{block});
  check_rounds({"out_tangent"}, Tangent{block});
}

void check_product(const Choice& choice) {
  testing::expect(choice.shape.fits(), "the kernels refuse the shape");
  check_float(Product(choice, true));
}

// The gradient in the weights of one or two pairs.
struct Weight {
  Weight(const FusedConvolutionShape& shape_, ProductKind kind_, int64_t splits_, int pairs_,
         bool exact = true)
      : shape(shape_), kind(kind_), splits(splits_), pairs(pairs_) {
    Random random(static_cast<unsigned>(shape.channels + pairs));
    for (int i = 0; i < 2 * pairs; ++i) {
      tensors.push_back(random.normal(shape.trajectories * shape.batch * shape.image_size(), 0.2));
      if (exact) hold(i);
    }
  }

  void hold(int tensor) { tensors[tensor] = held_by(kind, tensors[tensor], shape.trajectories); }

  FusedConvolutionShape shape;
  ProductKind kind;
  int64_t splits;
  int pairs;
  std::vector<std::vector<double>> tensors;  // x and dy of every pair

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t stride = shape.weight_size() + kGap, images = shape.batch * shape.image_size();
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        std::vector<Operand> operands;
        for (const std::vector<double>& each : tensors) {
          operands.push_back(Operand::activation(each, shape, kind));
        }
        const int64_t parts = trajmatch::FusedConvolutionWeight::parts(shape.channels);
        std::vector<float> partial(shape.trajectories * splits * parts * shape.weight_size(),
                                   std::nanf(""));
        trajmatch::FusedConvolutionWeight params{shape, kind, splits, pairs, {}, partial.data()};
        for (int i = 0; i < pairs; ++i) {
          const Operand &x = operands[2 * i], &grad_y = operands[2 * i + 1];
          params.pair[i] = {x.get(), grad_y.get(), x.magnitudes(), grad_y.magnitudes()};
        }
        trajmatch::cuda::launch_fused_convolution_weight(params, test_stream());
        float* const weight = out.add("weight", shape.trajectories * stride);
        trajmatch::cuda::launch_sum_shares<float>(
            {{params.sum(weight, stride)}, 1, shape.trajectories}, test_stream());
        return out;
      }
    }
    const BlockShape block{1, shape.batch, shape.size, shape.channels, 1, shape.channels};
    std::vector<T> result(shape.trajectories * stride, std::numeric_limits<T>::quiet_NaN());
    for (int64_t k = 0; k < shape.trajectories; ++k) {
      T* const to = &result[k * stride];
      std::fill(to, to + shape.weight_size(), T(0));
      for (int i = 0; i < pairs; ++i) {
        const double* const x = &tensors[2 * i][k * images];
        const double* const dy = &tensors[2 * i + 1][k * images];
        block.for_products([&](int64_t in, int64_t w, int64_t o) {
          to[w] += static_cast<T>(x[in]) * static_cast<T>(dy[o]);
        });
      }
    }
    out.add("weight", widened(result));
    return out;
  }
};

// Both products of two terms in half precision, with these operands.
void check_terms(const Product& product, const Weight& weight) {
  check_float(product);
  check_float(weight);
}

// The four operands of two terms times these factors: scales apart in every order, zeros, and
// results that float32 barely holds.
void check_scales(const std::vector<double>& factors) {
  const FusedConvolutionShape shape{1, 1, 8, 32};
  Product product({shape, ProductKind::kFp16, 32, 2, false}, false);
  Weight weight(shape, ProductKind::kFp16, 1, 2);
  for (int i = 0; i < 4; ++i) {
    for (double& value : i % 2 == 0 ? product.x[i / 2] : product.weight[i / 2]) value *= factors[i];
    for (double& value : weight.tensors[i]) value *= factors[i];
    product.hold(i / 2);
    weight.hold(i);
  }
  check_terms(product, weight);
}

// What is not finite comes through, and changes no scale.
void check_not_finite(ProductKind kind, double value) {
  const FusedConvolutionShape shape{1, 1, 8, 32};
  Product product({shape, kind, 32, 2, true}, true);
  Weight weight(shape, kind, 1, 2);
  // The weight's middle tap: others meet the zeros of the border, which the definition leaves out.
  product.x[1][100] = product.weight[0][4] = weight.tensors[0][500] = value;
  check_terms(product, weight);
}

// Operands with more bits than the kind holds are each rounded: the result equals that of operands
// rounded beforehand.
template <class Op>
void check_rounded_operands(const Op& op, const Op& rounded) {
  const Outputs<float> found = op.template run<float>(Backend::kCuda);
  const Outputs<double> wanted = rounded.template run<double>(Backend::kCpu);
  const double error = relative_error(found.tensors()[0].second, wanted.tensors()[0].second);
  testing::expect(error < 3e-6, "it is off by " + std::to_string(error));
}

void check_shapes() {
  const FusedConvolutionShape large{1, 100, 16, 128}, small{1, 10, 16, 128}, eight{3, 100, 8, 128};
  const auto tile = [](const FusedConvolutionShape& shape, ProductKind kind) {
    return shape.tile_channels(kind);
  };
  testing::expect(
      tile(large, ProductKind::kTf32) == 128 && tile(large, ProductKind::kTf32x3) == 64 &&
          tile(small, ProductKind::kFp16) == 32 && tile(eight, ProductKind::kFp16) == 128,
      "another tile was chosen");
  using trajmatch::FusedConvolutionWeight;
  testing::expect(FusedConvolutionWeight::splits_of(large) == 22 &&
                      FusedConvolutionWeight::splits_of(small) == 10,
                  "another number of splits was chosen");
  for (const FusedConvolutionShape& bad :
       {FusedConvolutionShape{1, 1, 32, 64}, FusedConvolutionShape{1, 1, 16, 48},
        FusedConvolutionShape{1, 1, 16, 256}, FusedConvolutionShape{1, 1, 4, 64}}) {
    testing::expect(!bad.fits(), "a wrong shape is accepted");
  }
  trajmatch::FusedConvolution params{{1, 1, 8, 32}, ProductKind::kTf32, 16, 1, {}, nullptr};
  const auto message = [&] {
    return testing::message_of([&] { trajmatch::cuda::launch_fused_convolution(params, nullptr); });
  };
  testing::expect_contains(message(), "32, 64 or 128 channels, not 16");
  params.tile_channels = 32;
  params.kind = ProductKind::kTf32x3;
  testing::expect_contains(message(), "in the forward pass alone");
}

}  // namespace

std::vector<testing::Case> fused_convolution_cases() {
  const ProductKind tf32 = ProductKind::kTf32, three = ProductKind::kTf32x3;
  const ProductKind fp16 = ProductKind::kFp16;
  std::vector<testing::Case> cases;
  for (const Choice& choice : {
           // Every tile; images that do not fill a block; several trajectories.
           Choice{{1, 2, 16, 32}, tf32, 32, 1, false},
           Choice{{2, 3, 8, 32}, tf32, 32, 2, false},
           Choice{{1, 1, 16, 64}, tf32, 64, 1, true},
           Choice{{1, 5, 8, 64}, tf32, 64, 1, true},
           Choice{{1, 1, 16, 128}, tf32, 128, 1, false},
           Choice{{1, 1, 8, 128}, tf32, 128, 1, true},
           Choice{{2, 1, 8, 64}, tf32, 32, 1, false},
           Choice{{1, 1, 8, 32}, tf32, 32, 2, true},
           Choice{{2, 3, 8, 32}, fp16, 32, 2, true},
           Choice{{1, 1, 16, 64}, fp16, 64, 1, false},
           Choice{{1, 1, 8, 64}, fp16, 64, 2, true},
           Choice{{1, 1, 8, 128}, fp16, 128, 1, false},
       }) {
    cases.push_back({"fused_convolution product " + text(choice.shape, choice.kind),
                     [choice] { check_product(choice); }});
  }
  for (const BlockCase& one : {
           // Every tile; planes that several images fill, and not; several trajectories.
           BlockCase{{1, 2, 16, 32, 1, 32}, tf32, 32, true},
           BlockCase{{2, 3, 8, 32, 1, 32}, tf32, 32, true},
           BlockCase{{1, 1, 16, 64, 1, 64}, tf32, 64, false},
           BlockCase{{1, 5, 8, 64, 1, 64}, tf32, 64, true},
           BlockCase{{1, 1, 16, 128, 1, 128}, tf32, 128, false},
           BlockCase{{1, 1, 8, 128, 1, 128}, tf32, 128, false},
           BlockCase{{1, 1, 8, 32, 1, 32}, three, 32, false},
           BlockCase{{1, 1, 16, 64, 1, 64}, three, 64, false},
           BlockCase{{1, 1, 8, 128, 1, 128}, three, 64, false},
           BlockCase{{1, 1, 16, 32, 1, 32}, fp16, 32, true},
           BlockCase{{2, 1, 8, 32, 1, 32}, fp16, 32, false},
       }) {
    const FusedConvolutionShape shape{one.shape.trajectories, one.shape.batch, one.shape.in_size,
                                      one.shape.channels};
    cases.push_back(
        {"fused_convolution block " + text(shape, one.kind), [one] { check_block(one); }});
  }
  for (const Weight& one : {
           // Every number of channels; uneven and empty splits; several trajectories.
           Weight({1, 3, 16, 32}, tf32, 2, 2),
           Weight({2, 5, 8, 32}, tf32, 4, 1),
           Weight({1, 2, 8, 64}, tf32, 1, 1),
           Weight({1, 1, 16, 64}, tf32, 1, 2),
           Weight({1, 2, 8, 128}, tf32, 1, 2),
           Weight({1, 1, 16, 128}, tf32, 1, 1),
           Weight({1, 1, 16, 32}, fp16, 1, 2),
           Weight({2, 3, 8, 32}, fp16, 2, 1),
           Weight({1, 1, 16, 64}, fp16, 1, 1),
           Weight({1, 2, 8, 128}, fp16, 1, 2),
           Weight({1, 1, 16, 128}, fp16, 1, 1),
       }) {
    cases.push_back(
        {"fused_convolution weight " + text(one.shape, one.kind), [one] { check_float(one); }});
  }
  for (const ProductKind kind : {tf32, fp16}) {
    const FusedConvolutionShape shape{1, 1, 8, 64};
    cases.push_back({"fused_convolution rounding " + text(shape, kind), [shape, kind] {
                       const Choice choice{shape, kind, 64, 2, false};
                       check_rounded_operands(Product(choice, false), Product(choice, true));
                       check_rounded_operands(Weight(shape, kind, 1, 2, false),
                                              Weight(shape, kind, 1, 2));
                     }});
  }
  for (const std::vector<double>& factors : {std::vector<double>{1e-9, 1e6, 1.0, 1e-3},
                                             {1.0, 1e-3, 1e-9, 1e6},
                                             {1e-9, 1.0, 1.0, 1.0},
                                             {1.0, 1.0, 1e6, 1e6},
                                             {0.0, 1.0, 1.0, 1e-9},
                                             {1e-15, 1e-15, 1e-15, 1e-14}}) {
    std::string name = "fused_convolution scales fp16";
    for (const double factor : factors) name += " " + std::to_string(std::log10(factor));
    cases.push_back({name, [factors] { check_scales(factors); }});
  }
  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    for (const ProductKind kind : {tf32, fp16}) {
      cases.push_back(
          {"fused_convolution " + std::to_string(value) + " " + text({1, 1, 8, 32}, kind),
           [kind, value] { check_not_finite(kind, value); }});
    }
  }
  cases.push_back({"fused_convolution shapes", check_shapes});
  return cases;
}

}  // namespace kernels
