#include "core/norm_act_pool.h"

#include "cuda/norm_act_pool_dispatch.cuh"
#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::Activation;
using trajmatch::NormActPoolShape;
using trajmatch::Pooling;

enum class Norm { kNone, kInstance, kGroup, kLayer };

struct Size {
  int64_t batch, height, width, channels;
  int64_t trajectories = 1;
};

NormActPoolShape shape_of(const Size& size, Norm norm, Activation activation, Pooling pooling) {
  NormActPoolShape shape{};
  shape.batch = size.batch;
  shape.height = size.height;
  shape.width = size.width;
  shape.channels = size.channels;
  shape.groups = norm == Norm::kNone       ? 0
                 : norm == Norm::kInstance ? size.channels
                 : norm == Norm::kGroup    ? 4
                                           : 1;
  shape.elementwise = norm == Norm::kLayer;
  shape.activation = activation;
  shape.pooling = pooling;
  shape.eps = 1e-5;
  shape.trajectories = size.trajectories;
  // Between trajectories lies a gap that nobody may touch.
  shape.parameter_stride = shape.affine_size() + (size.trajectories > 1 ? 3 : 0);
  return shape;
}

// Moves pointers to the tensors of the next trajectory.
template <class... T>
void advance(int64_t by, T*&... tensors) {
  ((tensors = tensors == nullptr ? nullptr : tensors + by), ...);
}

struct Sizes {
  explicit Sizes(const NormActPoolShape& shape)
      : in(shape.batch * shape.pixels() * shape.channels),
        out(shape.batch * shape.out_height() * shape.out_width() * shape.channels),
        groups(shape.batch * shape.groups),
        parameters(shape.parameter_stride),
        partial(shape.batch * 2 * shape.affine_size()) {}
  int64_t in, out, groups, parameters, partial;  // of one trajectory
};

template <class T>
void next_trajectory(trajmatch::NormActPoolForward<T>& p, const Sizes& size) {
  advance(size.in, p.x);
  advance(size.out, p.out);
  advance(size.groups, p.mean, p.rstd);
  advance(size.parameters, p.weight, p.bias);
}

template <class T>
void next_trajectory(trajmatch::NormActPoolTangent<T>& p, const Sizes& size) {
  advance(size.in, p.x, p.x_tangent);
  advance(size.out, p.out_tangent);
  advance(size.groups, p.mean, p.rstd, p.mean_tangent, p.projection);
  advance(size.parameters, p.weight, p.bias, p.weight_tangent, p.bias_tangent);
}

template <class T>
void next_trajectory(trajmatch::NormActPoolBackward<T>& p, const Sizes& size) {
  advance(size.in, p.x, p.grad_x);
  advance(size.out, p.grad_out);
  advance(size.groups, p.mean, p.rstd);
  advance(size.parameters, p.weight, p.bias, p.grad_weight, p.grad_bias);
  advance(size.partial, p.partial_grad_affine);
}

template <class T>
void next_trajectory(trajmatch::NormActPoolBackwardTangent<T>& p, const Sizes& size) {
  advance(size.in, p.x, p.x_tangent, p.grad_x, p.grad_x_tangent);
  advance(size.out, p.grad_out, p.grad_out_tangent);
  advance(size.groups, p.mean, p.rstd, p.mean_tangent, p.projection);
  advance(size.parameters, p.weight, p.bias, p.weight_tangent, p.bias_tangent);
  advance(size.parameters, p.grad_weight_tangent, p.grad_bias_tangent);
  advance(size.partial, p.partial_grad_affine);
}

// Calls body with the tensors of one trajectory after another, as the CPU loops take them.
template <class Params, class Body>
void each_trajectory(Params params, const Body& body) {
  const int64_t count = params.shape.trajectories;
  const Sizes size(params.shape);
  params.shape.trajectories = 1;
  for (int64_t k = 0; k < count; ++k, next_trajectory(params, size)) body(params);
}

// Which optional tensors there are: a bit each.
struct Options {
  int bits;
  bool has(int bit) const { return (bits >> bit & 1) != 0; }
  bool weight() const { return has(0); }
  bool bias() const { return has(1); }
  bool weight_tangent() const { return has(2); }
  bool bias_tangent() const { return has(3); }
  bool grad_out_tangent() const { return has(4); }
  bool wants_affine() const { return has(5); }
  bool wants_grad_x() const { return has(6); }
};

// The numbers of all four passes. Statistics come from the forward pass in float64.
struct Data {
  Data(const NormActPoolShape& shape_, Options options_) : shape(shape_), options(options_) {
    const Sizes of_one(shape);
    const int64_t in = shape.trajectories * of_one.in, out = shape.trajectories * of_one.out;
    const int64_t affine = shape.trajectories * shape.parameter_stride;
    Random random(static_cast<unsigned>(in + 7 * options.bits));
    x = random.normal(in, 1.5, 2.0);
    x_tangent = random.normal(in, -0.5);
    grad_out = random.normal(out);
    grad_out_tangent = random.normal(out);
    weight = random.normal(affine, 1.0);
    bias = random.normal(affine);
    weight_tangent = random.normal(affine);
    bias_tangent = random.normal(affine);
    out_size = out;
    in_size = in;
    affine_size = affine;
    partial_size = shape.trajectories * of_one.partial;
    groups = shape.trajectories * of_one.groups;
  }
  std::vector<double> sums() const { return std::vector<double>(shape.sums_size(), std::nan("")); }

  NormActPoolShape shape;
  Options options;
  int64_t in_size, out_size, affine_size, partial_size, groups;
  std::vector<double> x, x_tangent, grad_out, grad_out_tangent;
  std::vector<double> weight, bias, weight_tangent, bias_tangent;
  std::vector<double> mean, rstd, mean_tangent, projection;
};

struct Forward {
  const Data& data;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const bool normalised = data.shape.groups > 0;
    const Input<T> x(data.x), weight(data.weight, data.options.weight()),
        bias(data.bias, data.options.bias());
    Outputs<T> out;
    T* const mean = out.add("mean", data.groups, normalised);
    T* const rstd = out.add("rstd", data.groups, normalised);
    trajmatch::NormActPoolForward<T> params{
        data.shape, x.get(), weight.get(), bias.get(), out.add("out", data.out_size), mean, rstd};
    if (backend == Backend::kCuda) {
      std::vector<double> sums = data.sums();
      params.sums = sums.empty() ? nullptr : sums.data();
      params.rounds = rounds;
      trajmatch::cuda::launch_norm_act_pool_forward(params, test_stream());
    } else {
      each_trajectory(params, [](const auto& one) {
        trajmatch::cpu::norm_act_pool_forward(one, 0, one.shape.batch);
      });
    }
    return out;
  }
};

struct Tangent {
  const Data& data;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const bool normalised = data.shape.groups > 0;
    const Options& options = data.options;
    const Input<T> x(data.x), weight(data.weight, options.weight()),
        bias(data.bias, options.bias()), mean(data.mean, normalised), rstd(data.rstd, normalised),
        x_tangent(data.x_tangent), weight_tangent(data.weight_tangent, options.weight_tangent()),
        bias_tangent(data.bias_tangent, options.bias_tangent());
    Outputs<T> out;
    T* const mean_tangent = out.add("mean_tangent", data.groups, normalised);
    T* const projection = out.add("projection", data.groups, normalised);
    trajmatch::NormActPoolTangent<T> params{
        data.shape,         x.get(),
        weight.get(),       bias.get(),
        mean.get(),         rstd.get(),
        x_tangent.get(),    weight_tangent.get(),
        bias_tangent.get(), out.add("out_tangent", data.out_size),
        mean_tangent,       projection};
    if (backend == Backend::kCuda) {
      std::vector<double> sums = data.sums();
      params.sums = sums.empty() ? nullptr : sums.data();
      params.rounds = rounds;
      trajmatch::cuda::launch_norm_act_pool_tangent(params, test_stream());
    } else {
      each_trajectory(params, [](const auto& one) {
        trajmatch::cpu::norm_act_pool_tangent(one, 0, one.shape.batch);
      });
    }
    return out;
  }
};

struct Backward {
  const Data& data;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const bool normalised = data.shape.groups > 0;
    const bool affine = data.options.wants_affine();
    const Input<T> x(data.x), weight(data.weight, data.options.weight()),
        bias(data.bias, data.options.bias()), mean(data.mean, normalised),
        rstd(data.rstd, normalised), grad_out(data.grad_out);
    Outputs<T> out;
    T* const grad_x = out.add("grad_x", data.in_size);
    T* const partial = out.add("partial", data.partial_size, affine);
    T* const grad_weight = out.add("grad_weight", data.affine_size, affine);
    trajmatch::NormActPoolBackward<T> params{data.shape,
                                             x.get(),
                                             weight.get(),
                                             bias.get(),
                                             mean.get(),
                                             rstd.get(),
                                             grad_out.get(),
                                             grad_x,
                                             partial,
                                             grad_weight,
                                             out.add("grad_bias", data.affine_size, affine)};
    if (backend == Backend::kCuda) {
      std::vector<double> sums = data.sums();
      params.sums = sums.empty() ? nullptr : sums.data();
      params.rounds = rounds;
      trajmatch::cuda::launch_norm_act_pool_backward(params, test_stream());
    } else {
      each_trajectory(params, [affine](const auto& one) {
        trajmatch::cpu::norm_act_pool_backward(one, 0, one.shape.batch);
        if (!affine) return;
        trajmatch::cpu::sum_partial_affine(one.shape, one.partial_grad_affine, one.grad_weight,
                                           one.grad_bias);
      });
    }
    return out;
  }
};

struct BackwardTangent {
  const Data& data;
  bool rounds = false;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const bool normalised = data.shape.groups > 0;
    const Options& options = data.options;
    const bool affine = options.wants_affine();
    const Input<T> x(data.x), weight(data.weight, options.weight()),
        bias(data.bias, options.bias()), mean(data.mean, normalised), rstd(data.rstd, normalised),
        x_tangent(data.x_tangent), weight_tangent(data.weight_tangent, options.weight_tangent()),
        bias_tangent(data.bias_tangent, options.bias_tangent()),
        mean_tangent(data.mean_tangent, normalised), projection(data.projection, normalised),
        grad_out(data.grad_out),
        grad_out_tangent(data.grad_out_tangent, options.grad_out_tangent());
    Outputs<T> out;
    T* const grad_x = out.add("grad_x", data.in_size, options.wants_grad_x());
    T* const grad_x_tangent = out.add("grad_x_tangent", data.in_size);
    T* const partial = out.add("partial", data.partial_size, affine);
    T* const grad_weight = out.add("grad_weight_tangent", data.affine_size, affine);
    trajmatch::NormActPoolBackwardTangent<T> params{
        data.shape,
        x.get(),
        weight.get(),
        bias.get(),
        mean.get(),
        rstd.get(),
        x_tangent.get(),
        weight_tangent.get(),
        bias_tangent.get(),
        mean_tangent.get(),
        projection.get(),
        grad_out.get(),
        grad_out_tangent.get(),
        grad_x,
        grad_x_tangent,
        partial,
        grad_weight,
        out.add("grad_bias_tangent", data.affine_size, affine),
    };
    if (backend == Backend::kCuda) {
      std::vector<double> sums = data.sums();
      params.sums = sums.empty() ? nullptr : sums.data();
      params.rounds = rounds;
      trajmatch::cuda::launch_norm_act_pool_backward_tangent(params, test_stream());
    } else {
      each_trajectory(params, [affine](const auto& one) {
        trajmatch::cpu::norm_act_pool_backward_tangent(one, 0, one.shape.batch);
        if (!affine) return;
        trajmatch::cpu::sum_partial_affine(one.shape, one.partial_grad_affine,
                                           one.grad_weight_tangent, one.grad_bias_tangent);
      });
    }
    return out;
  }
};

void check_all(const NormActPoolShape& shape, Options options) {
  Data data(shape, options);
  check(Forward{data});
  if (shape.groups > 0) {
    const Outputs<double> forward = Forward{data}.run<double>(Backend::kCpu);
    data.mean = forward.tensors()[0].second;
    data.rstd = forward.tensors()[1].second;
  }
  check(Tangent{data});
  check(Backward{data});
  if (shape.groups > 0) {
    const Outputs<double> tangent = Tangent{data}.run<double>(Backend::kCpu);
    data.mean_tangent = tangent.tensors()[0].second;
    data.projection = tangent.tensors()[1].second;
  }
  check(BackwardTangent{data});
  if (shape.activation != Activation::kRelu) return;  // as in the blocks that round
  check_rounds({"out"}, Forward{data});
  check_rounds({"out_tangent"}, Tangent{data});
  check_rounds({"grad_x"}, Backward{data});
  std::set<std::string> both{"grad_x", "grad_x_tangent"};
  if (!options.wants_grad_x()) both.erase("grad_x");
  check_rounds(both, BackwardTangent{data});
}

constexpr Activation kActivations[] = {Activation::kNone, Activation::kRelu, Activation::kLeakyRelu,
                                       Activation::kSigmoid};
constexpr Pooling kPoolings[] = {Pooling::kNone, Pooling::kAverage, Pooling::kMax};
constexpr Norm kNorms[] = {Norm::kNone, Norm::kInstance, Norm::kGroup, Norm::kLayer};

// Every combination of norm, activation and pooling; the optional tensors go through all patterns.
std::vector<testing::Case> combinations() {
  std::vector<testing::Case> cases;
  int pattern = 0;
  for (const Norm norm : kNorms) {
    for (const Activation activation : kActivations) {
      for (const Pooling pooling : kPoolings) {
        for (const Size& size : {Size{2, 6, 8, 16}, Size{3, 5, 7, 12}}) {
          pattern = (pattern + 37) % 128;
          const NormActPoolShape shape = shape_of(size, norm, activation, pooling);
          cases.push_back({"norm_act_pool combination " + std::to_string(cases.size()),
                           [shape, pattern] { check_all(shape, Options{pattern}); }});
        }
      }
    }
  }
  return cases;
}

// Optional tensors in the held kernels and in the general ones: 16 patterns in which any three
// of the seven occur in all eight ways.
int pattern_of(int number) {
  const auto bit = [number](int which) { return number >> which & 1; };
  return number | (bit(0) ^ bit(1) ^ bit(2)) << 4 | (bit(1) ^ bit(2) ^ bit(3)) << 5 |
         (bit(0) ^ bit(1) ^ bit(3)) << 6;
}

std::vector<testing::Case> option_patterns() {
  std::vector<testing::Case> cases;
  for (const Norm norm : kNorms) {
    cases.push_back({"norm_act_pool options " + std::to_string(static_cast<int>(norm)), [norm] {
                       for (int number = 0; number < 16; ++number) {
                         check_all(
                             shape_of({2, 3, 4, 4}, norm, Activation::kSigmoid, Pooling::kAverage),
                             Options{pattern_of(number)});
                       }
                     }});
  }
  return cases;
}

struct SizeCase {
  Size size;
  Norm norm;
  Pooling pooling;
  bool held;  // which kernel of the forward pass takes it, in float32
};

std::vector<testing::Case> sizes() {
  const std::vector<SizeCase> chosen = {
      // One pixel; with pooling nothing is left.
      {{1, 1, 1, 1}, Norm::kInstance, Pooling::kNone, true},
      {{1, 1, 1, 1}, Norm::kInstance, Pooling::kMax, true},
      {{2, 1, 5, 3}, Norm::kInstance, Pooling::kAverage, true},
      {{2, 2, 2, 8}, Norm::kNone, Pooling::kMax, false},
      // Channels around the number of lanes.
      {{1, 8, 8, 7}, Norm::kInstance, Pooling::kAverage, true},
      {{1, 8, 8, 31}, Norm::kInstance, Pooling::kMax, true},
      {{1, 8, 8, 33}, Norm::kInstance, Pooling::kAverage, true},
      {{1, 5, 5, 33}, Norm::kNone, Pooling::kAverage, false},
      // Groups of 8 and 32 channels; of 3, no power of two; of 40, more than there are lanes.
      {{2, 4, 4, 32}, Norm::kGroup, Pooling::kAverage, true},
      {{2, 5, 4, 128}, Norm::kGroup, Pooling::kMax, true},
      {{2, 4, 4, 12}, Norm::kGroup, Pooling::kMax, false},
      {{2, 4, 5, 160}, Norm::kGroup, Pooling::kAverage, false},
      // The student's planes, and odd ones.
      {{2, 32, 32, 16}, Norm::kInstance, Pooling::kAverage, true},
      {{1, 16, 16, 40}, Norm::kInstance, Pooling::kAverage, true},
      {{1, 31, 29, 9}, Norm::kInstance, Pooling::kMax, true},
      {{1, 28, 28, 8}, Norm::kInstance, Pooling::kNone, true},
      {{1, 14, 15, 32}, Norm::kLayer, Pooling::kAverage, false},
      // The largest planes that 64 rows of threads hold, and one row of pixels more.
      {{1, 32, 64, 8}, Norm::kInstance, Pooling::kAverage, true},
      {{1, 33, 64, 8}, Norm::kInstance, Pooling::kAverage, false},
      {{1, 33, 64, 8}, Norm::kInstance, Pooling::kNone, false},
      // Images shared by two or three blocks; one has more channels than lanes.
      {{1, 64, 65, 8}, Norm::kInstance, Pooling::kAverage, false},
      {{2, 79, 79, 12}, Norm::kInstance, Pooling::kMax, false},
      {{2, 66, 64, 12}, Norm::kGroup, Pooling::kNone, false},
      {{1, 64, 64, 36}, Norm::kLayer, Pooling::kAverage, false},
      // So many images that blocks take 32 channels each.
      {{520, 2, 2, 32}, Norm::kInstance, Pooling::kMax, true},
      // Several trajectories: held, general, with a weight per pixel, and with shared images.
      {{2, 8, 8, 12, 3}, Norm::kInstance, Pooling::kAverage, true},
      {{3, 5, 4, 24, 2}, Norm::kGroup, Pooling::kMax, false},
      {{2, 4, 5, 6, 3}, Norm::kLayer, Pooling::kNone, false},
      {{1, 64, 65, 8, 2}, Norm::kInstance, Pooling::kAverage, false},
  };
  std::vector<testing::Case> cases;
  for (const SizeCase& one : chosen) {
    cases.push_back({"norm_act_pool size " + std::to_string(cases.size()), [one] {
                       const NormActPoolShape shape =
                           shape_of(one.size, one.norm, Activation::kRelu, one.pooling);
                       const int slots = one.pooling == Pooling::kNone ? 32 : 8;
                       testing::expect(
                           trajmatch::cuda::plan_blocks(shape, slots, 512, nullptr).held ==
                               one.held,
                           "another kernel was chosen");
                       check_all(shape, Options{0x7f});
                     }});
  }
  return cases;
}

void check_parts() {
  const auto parts = [](const Size& size, Norm norm) {
    return shape_of(size, norm, Activation::kRelu, Pooling::kAverage).parts();
  };
  NormActPoolShape batch =
      shape_of({256, 32, 32, 64}, Norm::kInstance, Activation::kRelu, Pooling::kNone);
  batch.over_batch = true;
  // ImageNet's first layer; many images; planes that one block holds; no norm; batch norm.
  testing::expect(parts({10, 128, 128, 128}, Norm::kInstance) == 7 &&
                      parts({100, 64, 64, 128}, Norm::kInstance) == 1 &&
                      parts({1, 32, 64, 8}, Norm::kInstance) == 1 &&
                      parts({1, 128, 128, 8}, Norm::kNone) == 1 && batch.parts() == 128 &&
                      batch.sums_size() == 128 * 4 * 64,
                  "images are shared by another number of blocks");
}

void check_refused() {
  NormActPoolShape shape =
      shape_of({1, 65536, 32768, 1}, Norm::kInstance, Activation::kRelu, Pooling::kNone);
  testing::expect_contains(
      testing::message_of([&] { trajmatch::cuda::plan_blocks(shape, 0, 512, nullptr); }),
      "one image has 2147483648 activations");
}

}  // namespace

std::vector<testing::Case> norm_act_pool_cases() {
  std::vector<testing::Case> cases = combinations();
  for (const testing::Case& one : option_patterns()) cases.push_back(one);
  for (const testing::Case& one : sizes()) cases.push_back(one);
  cases.push_back({"norm_act_pool parts", check_parts});
  cases.push_back({"norm_act_pool of an image too large to number", check_refused});
  return cases;
}

}  // namespace kernels
