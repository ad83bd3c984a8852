#include "core/classifier.h"
#include "core/soft_cross_entropy.h"

#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::ClassifierShape;

// Both terms of every product: values, and their tangents.
struct Problem {
  explicit Problem(const ClassifierShape& shape_, int terms_) : shape(shape_), terms(terms_) {
    Random random(static_cast<unsigned>(shape.batch * 1000 + shape.classes));
    shape.parameter_stride = shape.classes * shape.features() + 3;  // a gap that nobody may touch
    for (int t = 0; t < 2; ++t) {
      features[t] = random.normal(images() * shape.features());
      weight[t] = random.normal(parameters());
      grad_logits[t] = random.normal(images() * shape.classes);
    }
    bias = random.normal(parameters());
  }
  int64_t images() const { return shape.trajectories * shape.batch; }
  int64_t parameters() const { return shape.trajectories * shape.parameter_stride; }
  // The offset of the parameters of an image's trajectory.
  int64_t parameters_of(int64_t image) const {
    return image / shape.batch * shape.parameter_stride;
  }
  // Where the feature lies that weight j of a class multiplies.
  int64_t place(int64_t j) const { return j % shape.pixels * shape.channels + j / shape.pixels; }

  // Calls body(term, image, class, weight, feature) for all.
  template <class Body>
  void each(const Body& body) const {
    const int64_t size = shape.features();
    for (int t = 0; t < terms; ++t) {
      for (int64_t b = 0; b < images(); ++b) {
        for (int64_t k = 0; k < shape.classes; ++k) {
          const int64_t weights = parameters_of(b) + k * size;
          for (int64_t j = 0; j < size; ++j) body(t, b, k, weights + j, b * size + place(j));
        }
      }
    }
  }

  ClassifierShape shape;
  int terms;
  std::vector<double> features[2], weight[2], grad_logits[2], bias;
};

std::vector<double> zeros(int64_t count) {
  return std::vector<double>(static_cast<size_t>(count), 0.0);
}

// For gradients of parameters: zeros where a sum is added up, NaN in the gaps between trajectories.
std::vector<double> zeros_with_gaps(const ClassifierShape& shape, int64_t size) {
  std::vector<double> values = zeros(shape.trajectories * shape.parameter_stride);
  for (size_t i = 0; i < values.size(); ++i) {
    if (static_cast<int64_t>(i) % shape.parameter_stride >= size) values[i] = std::nan("");
  }
  return values;
}

struct Forward {
  Problem problem;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const ClassifierShape& shape = problem.shape;
    const int64_t count = problem.images() * shape.classes;
    const Input<T> f[2] = {{problem.features[0]}, {problem.features[1]}};
    const Input<T> w[2] = {{problem.weight[0]}, {problem.weight[1]}};
    // A tangent along the features alone has no bias.
    const Input<T> bias(problem.bias, problem.terms == 2);
    Outputs<T> out;
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_classifier_forward<T>(
          {shape,
           problem.terms,
           {{f[0].get(), w[0].get()}, {f[1].get(), w[1].get()}},
           bias.get(),
           out.add("logits", count)},
          test_stream());
      return out;
    }
    T* const logits = out.add("logits", zeros(count));
    for (int64_t i = 0; i < count && problem.terms == 2; ++i) {
      logits[i] = bias.get()[problem.parameters_of(i / shape.classes) + i % shape.classes];
    }
    problem.each([&](int t, int64_t b, int64_t k, int64_t weight, int64_t feature) {
      logits[b * shape.classes + k] += w[t].get()[weight] * f[t].get()[feature];
    });
    return out;
  }
};

// dW, and df of both terms (df') and, if wanted, of the first alone.
struct Backward {
  Problem problem;
  int inputs;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const ClassifierShape& shape = problem.shape;
    const int64_t count = problem.images() * shape.features();
    const Input<T> g[2] = {{problem.grad_logits[0]}, {problem.grad_logits[1]}};
    const Input<T> f[2] = {{problem.features[0]}, {problem.features[1]}};
    const Input<T> w[2] = {{problem.weight[0]}, {problem.weight[1]}};
    Outputs<T> out;
    if (backend == Backend::kCuda) {
      T* const grad_weight = out.add("grad_weight", problem.parameters());
      trajmatch::ClassifierBackward<T> params{{},
                                              inputs,
                                              {shape,
                                               problem.terms,
                                               {{g[0].get(), f[0].get()}, {g[1].get(), f[1].get()}},
                                               grad_weight,
                                               out.add("grad_bias", problem.parameters())}};
      for (int i = 0; i < inputs; ++i) {
        params.input[i] = {shape,
                           i == 0 ? problem.terms : 1,
                           {{g[0].get(), w[0].get()}, {g[1].get(), w[1].get()}},
                           out.add("grad_features " + std::to_string(i), count)};
      }
      trajmatch::cuda::launch_classifier_backward(params, test_stream());
      return out;
    }
    const int64_t weights = shape.classes * shape.features();
    T* const grad_weight = out.add("grad_weight", zeros_with_gaps(shape, weights));
    T* const grad_bias = out.add("grad_bias", zeros_with_gaps(shape, shape.classes));
    problem.each([&](int t, int64_t b, int64_t k, int64_t weight, int64_t feature) {
      grad_weight[weight] += g[t].get()[b * shape.classes + k] * f[t].get()[feature];
    });
    for (int64_t i = 0; i < problem.images() * shape.classes; ++i) {
      grad_bias[problem.parameters_of(i / shape.classes) + i % shape.classes] += g[0].get()[i];
    }
    for (int i = 0; i < inputs; ++i) {
      T* const grad = out.add("grad_features " + std::to_string(i), zeros(count));
      problem.each([&](int t, int64_t b, int64_t k, int64_t weight, int64_t feature) {
        if (i > 0 && t > 0) return;
        grad[feature] += g[t].get()[b * shape.classes + k] * w[t].get()[weight];
      });
    }
    return out;
  }
};

// Logits and loss, and the tangents of both, in launches of both or of each.
struct WithLoss {
  const Problem& problem;
  bool together;

  template <class T>
  Outputs<T> run(Backend) const {
    using Gradient = trajmatch::SoftCrossEntropyBackward<T>;
    using Tangent = trajmatch::SoftCrossEntropyBackwardTangent<T>;
    const ClassifierShape& shape = problem.shape;
    const int64_t images = problem.images(), count = images * shape.classes;
    const Input<T> f[2] = {{problem.features[0]}, {problem.features[1]}};
    const Input<T> w[2] = {{problem.weight[0]}, {problem.weight[1]}};
    const Input<T> bias(problem.bias);
    const std::vector<int64_t> labels = Random(7).indices(images, shape.classes);
    Outputs<T> out;
    T* const logits = out.add("logits", count);
    T* const along = out.add("logits_tangent", count);
    const trajmatch::SoftCrossEntropyInputs<T> in{
        shape.batch,   shape.classes, 1.0, nullptr,           logits,
        labels.data(), nullptr,       {},  shape.trajectories};
    const trajmatch::ClassifierForward<T> values{
        shape, 1, {{f[0].get(), w[0].get()}}, bias.get(), logits};
    const trajmatch::ClassifierForward<T> tangents{
        shape, 2, {{f[1].get(), w[0].get()}, {f[0].get(), w[1].get()}}, bias.get(), along};
    const Gradient gradient{in, out.add("grad_logits", count), nullptr};
    T* const rows = out.add("rows", images);
    const Tangent tangent{
        in, along, nullptr, rows, nullptr, out.add("grad_logits_tangent", count), nullptr};
    if (together) {
      trajmatch::cuda::launch_classifier_loss<T, Gradient>({values, gradient}, test_stream());
      trajmatch::cuda::launch_classifier_loss<T, Tangent>({tangents, tangent}, test_stream());
    } else {
      trajmatch::cuda::launch_classifier_forward(values, test_stream());
      trajmatch::cuda::launch_classifier_forward(tangents, test_stream());
      trajmatch::cuda::launch_soft_cross_entropy_backward(gradient, test_stream());
      trajmatch::cuda::launch_soft_cross_entropy_backward_tangent(tangent, test_stream());
    }
    return out;
  }
};

template <class T>
void check_with_loss(const Problem& problem) {
  const Outputs<T> one = run_under_schedules<T>(WithLoss{problem, true});
  const Outputs<T> two = run_under_schedules<T>(WithLoss{problem, false});
  for (size_t i = 0; i < one.tensors().size(); ++i) {
    const auto& [name, values] = one.tensors()[i];
    testing::expect(same_bits(values, two.tensors()[i].second), name + " differs");
  }
}

}  // namespace

std::vector<testing::Case> classifier_cases() {
  std::vector<testing::Case> cases;
  // Around the kernels' tiles: 5 classes and 2, 4 images, 64 features and 256.
  for (const ClassifierShape& shape : std::vector<ClassifierShape>{{1, 1, 1, 1},
                                                                   {3, 5, 4, 16},
                                                                   {4, 10, 16, 4},
                                                                   {5, 11, 13, 5},
                                                                   {9, 4, 65, 4},
                                                                   {5, 3, 17, 4, 3}}) {
    for (const int terms : {1, 2}) {
      const std::string name =
          "classifier " + std::to_string(shape.batch) + " x " + std::to_string(shape.classes) +
          " x " + std::to_string(shape.features()) + " K" + std::to_string(shape.trajectories) +
          ", terms " + std::to_string(terms);
      cases.push_back({name, [shape, terms] {
                         const Problem problem(shape, terms);
                         check(Forward{problem});
                         check(Backward{problem, terms});
                       }});
    }
  }
  for (const ClassifierShape& shape : std::vector<ClassifierShape>{
           {3, 2, 4, 4}, {2, 10, 16, 4, 3}, {2, 16, 4, 4}, {2, 17, 4, 4}}) {
    cases.push_back(
        {"classifier and loss of " + std::to_string(shape.classes) + " classes", [shape] {
           const Problem problem(shape, 2);
           check_with_loss<float>(problem);
           check_with_loss<double>(problem);
         }});
  }
  return cases;
}

}  // namespace kernels
