#include "core/first_layer.h"

#include "kernels/block_reference.h"

namespace kernels {
namespace {

using trajmatch::FirstLayerShape;

FirstLayerShape shape_of(const BlockShape& block) {
  return {block.trajectories,       block.batch,     block.in_size,
          block.in_channels,        block.padding,   block.channels,
          block.parameter_stride(), block.norm().eps};
}

// The block's data. Pixels are brighter from row to row, so that squares have different means.
BlockData data_of(const BlockShape& shape) {
  BlockData data(shape, false);
  const int64_t row = shape.in_size * shape.in_channels;
  for (size_t i = 0; i < data.x.size(); ++i) {
    data.x[i] += 0.05 * static_cast<double>(static_cast<int64_t>(i) / row % shape.in_size);
  }
  return data;
}

// The block's data with the exact statistics, as the kernels are given them.
struct Problem {
  explicit Problem(const BlockShape& shape) : data(data_of(shape)), references(data) {}

  // Places of a trajectory's parameters.
  struct Places {
    const float *weight, *norm_weight, *norm_bias;
  };
  Places places(const Input<float>& parameters) const {
    const float* const first = parameters.get();
    return {first, first + data.shape.norm_weight_offset(), first + data.shape.norm_bias_offset()};
  }

  BlockData data;
  BlockReferences references;
};

// What the kernels read, in float32.
struct Inputs {
  explicit Inputs(const Problem& problem_)
      : problem(problem_),
        sums(workspace(shape_of(problem_.data.shape))),
        images(problem.data.x),
        parameters(problem.data.parameters),
        parameter_tangents(problem.data.parameter_tangents),
        mean(problem.references.exact.mean),
        rstd(problem.references.exact.rstd),
        mean_tangent(problem.references.exact.mean_tangent),
        projection(problem.references.exact.projection),
        grad_out(problem.data.grad_out),
        grad_out_tangent(problem.data.grad_out_tangent) {}

  trajmatch::FirstLayerInputs all() const {
    const Problem::Places places = problem.places(parameters);
    return {shape_of(problem.data.shape), images.get(),     places.weight,
            places.norm_weight,           places.norm_bias, sums.data()};
  }
  trajmatch::FirstLayerTangents tangents() const {
    const Problem::Places places = problem.places(parameter_tangents);
    return {mean.get(), rstd.get(), places.weight, places.norm_weight, places.norm_bias};
  }

  static std::vector<float> workspace(const FirstLayerShape& shape) {
    const int64_t squares = shape.trajectories * shape.batch * shape.squares();
    return std::vector<float>(squares * 4 * shape.channels, std::nanf(""));
  }

  const Problem& problem;
  mutable std::vector<float> sums;
  Input<float> images, parameters, parameter_tangents, mean, rstd, mean_tangent, projection;
  Input<float> grad_out, grad_out_tangent;
};

struct Forward {
  const Problem& problem;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Inputs in(problem);
        const int64_t pooled = problem.references.exact.out.size(),
                      groups = problem.references.exact.mean.size();
        float* const result = out.add("out", pooled);
        float* const mean = out.add("mean", groups);
        trajmatch::cuda::launch_first_layer_forward(
            {in.all(), result, mean, out.add("rstd", groups), rounds}, test_stream());
        return out;
      }
    }
    const BlockReference<T>& reference = problem.references.of<T>();
    out.add("out", widened(reference.out));
    out.add("mean", widened(reference.mean));
    out.add("rstd", widened(reference.rstd));
    return out;
  }
};

struct Tangent {
  const Problem& problem;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Inputs in(problem);
        const int64_t pooled = problem.references.exact.out.size(),
                      groups = problem.references.exact.mean.size();
        float* const result = out.add("out_tangent", pooled);
        float* const mean = out.add("mean_tangent", groups);
        trajmatch::cuda::launch_first_layer_tangent(
            {in.all(), in.tangents(), result, mean, out.add("projection", groups), rounds},
            test_stream());
        return out;
      }
    }
    const BlockReference<T>& reference = problem.references.of<T>();
    out.add("out_tangent", widened(reference.out_tangent));
    out.add("mean_tangent", widened(reference.mean_tangent));
    out.add("projection", widened(reference.projection));
    return out;
  }
};

// The gradients of a backward pass by name, with the workspace that they are made in.
struct Gradients {
  Gradients(const Problem& problem, bool tangent, bool wants_images, Outputs<float>& out)
      : shape(shape_of(problem.data.shape)), tiles(shape.tiles(tangent)) {
    const BlockShape& block = problem.data.shape;
    const int64_t images = shape.trajectories * shape.batch;
    affine.assign(images * 2 * shape.channels, std::nanf(""));
    weight.assign(images * shape.squares() * shape.channels * shape.taps(), std::nanf(""));
    image_shares.assign(tiles * images * shape.image_share(), std::nanf(""));
    float* const parameters =
        out.add("grad_parameters", shape.trajectories * shape.parameter_stride);
    grad_images = out.add("grad_images", images * shape.image_size(), wants_images);
    all = {affine.data(), weight.data(), wants_images ? image_shares.data() : nullptr};
    sums = {{all.sum_affine(shape, 0, parameters + block.norm_weight_offset()),
             all.sum_affine(shape, 1, parameters + block.norm_bias_offset()),
             all.sum_weight(shape, parameters)},
            3,
            shape.trajectories};
    if (wants_images && shape.squares() == 1) {
      sums.each[sums.count++] = all.sum_images(shape, tangent, grad_images);
    }
  }
  // Adds up what a backward pass has written.
  void add() const {
    trajmatch::cuda::launch_sum_shares(sums, test_stream());
    if (all.images != nullptr && shape.squares() > 1) {
      trajmatch::cuda::launch_first_layer_squares({shape, all.images, tiles, grad_images},
                                                  test_stream());
    }
  }

  FirstLayerShape shape;
  int64_t tiles;
  float* grad_images;
  std::vector<float> affine, weight, image_shares;
  trajmatch::FirstLayerShares all;
  trajmatch::ShareSums<float> sums;
};

struct Backward {
  const Problem& problem;
  bool wants_images;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Inputs in(problem);
        const Gradients gradients(problem, false, wants_images, out);
        trajmatch::cuda::launch_first_layer_backward(
            {in.all(), in.mean.get(), in.rstd.get(), in.grad_out.get(), gradients.all},
            test_stream());
        gradients.add();
        return out;
      }
    }
    const BlockReference<T>& reference = problem.references.of<T>();
    out.add("grad_parameters", widened(reference.grad_parameters));
    if (wants_images) out.add("grad_images", widened(reference.grad_x));
    return out;
  }
};

struct BackwardTangent {
  const Problem& problem;
  bool wants_images;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    if constexpr (std::is_same_v<T, float>) {
      if (backend == Backend::kCuda) {
        const Inputs in(problem);
        const Gradients gradients(problem, true, wants_images, out);
        trajmatch::cuda::launch_first_layer_backward_tangent(
            {in.all(), in.tangents(), in.mean_tangent.get(), in.projection.get(), in.grad_out.get(),
             in.grad_out_tangent.get(), gradients.all},
            test_stream());
        gradients.add();
        return out;
      }
    }
    const BlockReference<T>& reference = problem.references.of<T>();
    out.add("grad_parameter_tangents", widened(reference.grad_parameter_tangents));
    if (wants_images) out.add("grad_image_tangents", widened(reference.grad_x_tangent));
    return out;
  }
};

void check_shape(const BlockShape& shape) {
  testing::expect(shape_of(shape).fits(), "the kernels refuse the shape");
  const Problem problem(shape);
  check_float(Forward{problem});
  check_float(Tangent{problem});
  check_rounds({"out"}, Forward{problem});
  check_rounds({"out_tangent"}, Tangent{problem});
  for (const bool wants_images : {true, false}) {
    check_float(Backward{problem, wants_images});
    check_float(BackwardTangent{problem, wants_images});
  }
}

void check_refused() {
  const BlockShape good{1, 1, 32, 3, 1, 16};
  for (const BlockShape& bad : {BlockShape{1, 1, 16, 3, 1, 16}, BlockShape{1, 1, 32, 2, 1, 16},
                                BlockShape{1, 1, 32, 3, 1, 24}, BlockShape{1, 1, 32, 3, 3, 16},
                                BlockShape{1, 1, 34, 3, 0, 16}, BlockShape{1, 1, 48, 3, 1, 16}}) {
    testing::expect(shape_of(good).fits() && !shape_of(bad).fits(), "a wrong shape is accepted");
  }
}

}  // namespace

std::vector<testing::Case> first_layer_cases() {
  std::vector<testing::Case> cases;
  for (const BlockShape& shape : {BlockShape{1, 2, 32, 3, 1, 16}, BlockShape{2, 1, 28, 1, 3, 32},
                                  BlockShape{2, 2, 30, 3, 2, 16}, BlockShape{2, 2, 64, 3, 1, 16},
                                  BlockShape{1, 1, 94, 1, 2, 32}}) {
    cases.push_back(
        {"first_layer " + std::to_string(cases.size()), [shape] { check_shape(shape); }});
  }
  cases.push_back({"first_layer refuses what does not fit", check_refused});
  return cases;
}

}  // namespace kernels
