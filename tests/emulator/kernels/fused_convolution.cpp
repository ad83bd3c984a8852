#include "core/fused_convolution.h"

#include "kernels/block_reference.h"

namespace kernels {
namespace {

using trajmatch::FusedConvolutionShape;
using trajmatch::ProductKind;

std::string text(const FusedConvolutionShape& shape, ProductKind kind) {
  const char* const kinds[] = {"plain", "tf32", "tf32x3"};
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

// One or two terms, plain or turned. `exact` inputs are what TF32 holds.
struct Product {
  Product(const Choice& choice_, bool exact) : choice(choice_) {
    Random random(static_cast<unsigned>(choice.shape.channels + choice.terms));
    const FusedConvolutionShape& shape = choice.shape;
    for (int i = 0; i < choice.terms; ++i) {
      x.push_back(random.normal(shape.trajectories * shape.batch * shape.image_size(), 0.2));
      weight.push_back(random.normal(shape.trajectories * (shape.weight_size() + kGap)));
      if (!exact) continue;
      x.back() = held_by_tf32(x.back());
      weight.back() = held_by_tf32(weight.back());
    }
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
        std::vector<Input<float>> inputs, weights;
        std::vector<std::vector<float>> packed;
        for (int i = 0; i < choice.terms; ++i) {
          inputs.emplace_back(x[i]);
          weights.emplace_back(weight[i]);
          packed.emplace_back(shape.trajectories * shape.weight_size(), std::nanf(""));
          trajmatch::cuda::launch_pack_convolution(
              {shape, stride, choice.turned, choice.kind, weights[i].get(), packed[i].data()},
              test_stream());
        }
        for (int i = 0; i < choice.terms; ++i) {
          params.term[i] = {inputs[i].get(), packed[i].data()};
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
      : data(shape, moving_input, kind_ == ProductKind::kTf32),
        references(data),
        kind(kind_),
        tile(tile_) {}

  FusedConvolutionShape shape() const {
    return {data.shape.trajectories, data.shape.batch, data.shape.in_size, data.shape.channels};
  }
  trajmatch::FusedNorm norm(const float* parameters) const {
    const BlockShape& block = data.shape;
    return {block.parameter_stride(), static_cast<float>(block.norm().eps),
            parameters + block.norm_weight_offset(), parameters + block.norm_bias_offset()};
  }
  std::vector<float> packed(const float* parameters) const {
    std::vector<float> result(shape().trajectories * shape().weight_size(), std::nanf(""));
    trajmatch::cuda::launch_pack_convolution(
        {shape(), data.shape.parameter_stride(), false, kind, parameters, result.data()},
        test_stream());
    return result;
  }

  BlockData data;
  BlockReferences references;
  ProductKind kind;
  int64_t tile;
};

struct Forward {
  const Block& block;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Input<float> x(block.data.x), parameters(block.data.parameters);
        const std::vector<float> weight = block.packed(parameters.get());
        const int64_t groups = block.references.exact.mean.size();
        float* const y = out.add("y", block.references.exact.y.size());
        float* const pooled = out.add("out", block.references.exact.out.size());
        float* const mean = out.add("mean", groups);
        trajmatch::cuda::launch_fused_block_forward(
            {{block.shape(), block.kind, block.tile, 1, {{x.get(), weight.data()}}, y},
             block.norm(parameters.get()),
             pooled,
             mean,
             out.add("rstd", groups)},
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

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Input<float> x(block.data.x), x_tangent(block.data.x_tangent);
        const Input<float> parameters(block.data.parameters);
        const Input<float> tangents(block.data.parameter_tangents);
        const Input<float> y(block.references.exact.y), mean(block.references.exact.mean),
            rstd(block.references.exact.rstd);
        const std::vector<float> weight = block.packed(parameters.get());
        const std::vector<float> weight_tangent = block.packed(tangents.get());
        const bool moving = !block.data.x_tangent.empty();
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
              {{x.get(), weight_tangent.data()}, {x_tangent.get(), weight.data()}},
              y_tangent},
             block.norm(parameters.get()),
             norm_tangent.weight,
             norm_tangent.bias,
             y.get(),
             mean.get(),
             rstd.get(),
             pooled,
             mean_tangent,
             out.add("projection", groups)},
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
  if (one.kind != ProductKind::kTf32x3) check_float(Tangent{block});
}

void check_product(const Choice& choice) {
  testing::expect(choice.shape.fits(), "the kernels refuse the shape");
  check_float(Product(choice, choice.kind == ProductKind::kTf32));
}

// The gradient in the weights of one or two pairs.
struct Weight {
  Weight(const FusedConvolutionShape& shape_, ProductKind kind_, int64_t splits_, int pairs_)
      : shape(shape_), kind(kind_), splits(splits_), pairs(pairs_) {
    Random random(static_cast<unsigned>(shape.channels + pairs));
    for (int i = 0; i < 2 * pairs; ++i) {
      tensors.push_back(random.normal(shape.trajectories * shape.batch * shape.image_size(), 0.2));
      if (kind == ProductKind::kTf32) tensors.back() = held_by_tf32(tensors.back());
    }
  }

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
        const std::vector<Input<float>> inputs(tensors.begin(), tensors.end());
        const int64_t parts = trajmatch::FusedConvolutionWeight::parts(shape.channels);
        std::vector<float> partial(shape.trajectories * splits * parts * shape.weight_size(),
                                   std::nanf(""));
        trajmatch::FusedConvolutionWeight params{shape,
                                                 kind,
                                                 splits,
                                                 pairs,
                                                 {},
                                                 partial.data(),
                                                 out.add("weight", shape.trajectories * stride),
                                                 stride};
        for (int i = 0; i < pairs; ++i) {
          params.pair[i] = {inputs[2 * i].get(), inputs[2 * i + 1].get()};
        }
        trajmatch::cuda::launch_fused_convolution_weight(params, test_stream());
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

// Where inputs have more bits than TF32 they are rounded, not cut off: errors average out.
void check_rounding() {
  const Product product({{1, 1, 8, 32}, ProductKind::kTf32, 32, 1, false}, false);
  const std::vector<float> y = product.run<float>(Backend::kCuda).tensors()[0].second;
  const std::vector<double> exact = product.run<double>(Backend::kCpu).tensors()[0].second;
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    error += (y[i] - exact[i]) * (y[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  error = std::sqrt(error / norm);
  // Two operands, each off by up to 2^-11 and 2^-11 / sqrt(3) on average, less where the leading
  // digits are large.
  testing::expect(error > 1e-4 && error < 4e-4, "TF32 is off by " + std::to_string(error));
}

void check_shapes() {
  const FusedConvolutionShape large{1, 100, 16, 128}, small{1, 10, 16, 128}, eight{3, 100, 8, 128};
  testing::expect(
      large.tile_channels() == 128 && small.tile_channels() == 32 && eight.tile_channels() == 128,
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
  trajmatch::FusedConvolution params{{1, 1, 8, 32}, ProductKind::kPlain, 16, 1, {}, nullptr};
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
  const ProductKind plain = ProductKind::kPlain, tf32 = ProductKind::kTf32;
  const ProductKind three = ProductKind::kTf32x3;
  std::vector<testing::Case> cases;
  for (const Choice& choice : {
           // Every tile; images that do not fill a block; several trajectories.
           Choice{{1, 2, 16, 32}, plain, 32, 1, false},
           Choice{{2, 3, 8, 32}, plain, 32, 2, false},
           Choice{{1, 1, 16, 64}, plain, 64, 1, true},
           Choice{{1, 5, 8, 64}, plain, 64, 1, true},
           Choice{{1, 1, 16, 128}, plain, 128, 1, false},
           Choice{{1, 1, 8, 128}, plain, 128, 1, true},
           Choice{{2, 1, 8, 64}, plain, 32, 1, false},
           Choice{{1, 1, 8, 32}, tf32, 32, 2, true},
           Choice{{1, 1, 16, 64}, tf32, 64, 1, false},
       }) {
    cases.push_back({"fused_convolution product " + text(choice.shape, choice.kind),
                     [choice] { check_product(choice); }});
  }
  for (const BlockCase& one : {
           // Every tile; planes that several images fill, and not; several trajectories.
           BlockCase{{1, 2, 16, 32, 1, 32}, plain, 32, true},
           BlockCase{{2, 3, 8, 32, 1, 32}, plain, 32, true},
           BlockCase{{1, 1, 16, 64, 1, 64}, plain, 64, false},
           BlockCase{{1, 5, 8, 64, 1, 64}, plain, 64, true},
           BlockCase{{1, 1, 16, 128, 1, 128}, plain, 128, false},
           BlockCase{{1, 1, 8, 128, 1, 128}, plain, 128, false},
           BlockCase{{1, 1, 16, 32, 1, 32}, tf32, 32, true},
           BlockCase{{1, 1, 8, 32, 1, 32}, three, 32, false},
       }) {
    const FusedConvolutionShape shape{one.shape.trajectories, one.shape.batch, one.shape.in_size,
                                      one.shape.channels};
    cases.push_back(
        {"fused_convolution block " + text(shape, one.kind), [one] { check_block(one); }});
  }
  for (const Weight& one : {
           // Every number of channels; uneven and empty splits; several trajectories.
           Weight({1, 3, 16, 32}, plain, 2, 2),
           Weight({2, 5, 8, 32}, plain, 4, 1),
           Weight({1, 2, 8, 64}, plain, 1, 1),
           Weight({1, 1, 16, 64}, plain, 1, 2),
           Weight({1, 1, 8, 128}, plain, 1, 1),
           Weight({1, 1, 16, 128}, plain, 1, 1),
           Weight({1, 1, 16, 32}, tf32, 1, 1),
           Weight({1, 2, 8, 32}, tf32, 2, 2),
       }) {
    cases.push_back(
        {"fused_convolution weight " + text(one.shape, one.kind), [one] { check_float(one); }});
  }
  cases.push_back({"fused_convolution rounding", check_rounding});
  cases.push_back({"fused_convolution shapes", check_shapes});
  return cases;
}

}  // namespace kernels
