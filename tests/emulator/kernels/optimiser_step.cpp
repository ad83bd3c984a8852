#include "core/optimiser_step.h"

#include "kernels/check.h"

namespace kernels {
namespace {

struct Problem {
  explicit Problem(int64_t size_) : size(size_) {
    Random random(static_cast<unsigned>(size));
    for (std::vector<double>* vector : {&theta, &grad, &first, &second, &adjoint, &p, &q}) {
      *vector = random.normal(size);
    }
    for (double& value : second) value = value < -1 ? 0 : value * value;  // some were never moved
  }
  int64_t size;
  std::vector<double> theta, grad, first, second, adjoint, p, q;
  std::vector<double> lr = {0.03125};
};

// Bits of a choice: Adam, Nesterov or decoupled, and two that say what is given or wanted.
template <class T>
trajmatch::OptimiserRule<T> rule_of(int choice) {
  const bool adam = choice % 2 != 0, other = choice / 2 % 2 != 0;
  const auto number = [](double value) { return static_cast<T>(value); };
  return {adam,
          !adam && other,
          adam && other,
          number(0.875),
          number(adam ? 0.125 : 1),
          number(0.96875),
          number(0.03125),
          number(1e-3),
          number(0.0625),
          number(2),
          number(3)};
}

struct Step {
  Problem in;
  int choice;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const trajmatch::OptimiserRule<T> rule = rule_of<T>(choice);
    const bool in_place = choice / 4 % 2 != 0, keeps = choice / 8 != 0;
    const Input<T> theta(in.theta), grad(in.grad), lr(in.lr);
    Outputs<T> out;
    T* const theta_out = in_place ? out.add("theta", in.theta) : out.add("theta", in.size);
    const trajmatch::OptimiserStep<T> params{
        rule,
        in.size,
        lr.get(),
        in_place ? theta_out : theta.get(),
        grad.get(),
        theta_out,
        out.add("first", in.first),
        rule.adam ? out.add("second", in.second) : nullptr,
        out.add("kept", in.size, keeps),
        out.add("kept_second", in.size, keeps && rule.adam),
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_optimiser_step(params, test_stream());
    } else {
      trajmatch::cpu::optimiser_step(params, 0, in.size);
    }
    return out;
  }
};

struct Sweep {
  Problem in;
  int choice;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const trajmatch::OptimiserRule<T> rule = rule_of<T>(choice);
    const Input<T> lr(in.lr), theta(in.theta), kept(in.grad), kept_second(in.second);
    const Input<T> before(in.first), hessian_r(in.q, choice / 4 % 2 != 0);
    const Input<T> inject(in.theta, choice / 8 != 0);
    std::vector<double> partial(trajmatch::kReductionBlocks, std::nan(""));
    Outputs<T> out;
    const trajmatch::OptimiserSweep<T> params{
        rule,
        in.size,
        lr.get(),
        hessian_r.get(),
        inject.get(),
        theta.get(),
        kept.get(),
        rule.adam ? kept_second.get() : nullptr,
        before.get(),
        out.add("adjoint", in.adjoint),
        out.add("r", in.size),
        out.add("first_adjoint", in.p),
        rule.adam ? out.add("second_adjoint", in.q) : nullptr,
        partial.data(),
        out.add("grad_lr", 1),
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_optimiser_sweep(params, test_stream());
    } else {
      trajmatch::cpu::optimiser_sweep_partial(params, 0, trajmatch::kReductionBlocks);
      trajmatch::cpu::optimiser_sweep_finish(params);
    }
    return out;
  }
};

}  // namespace

std::vector<testing::Case> optimiser_step_cases() {
  std::vector<testing::Case> cases;
  for (const int64_t size : {int64_t{0}, int64_t{257}, int64_t{10007}}) {
    for (int choice = 0; choice < 16; ++choice) {
      if (size != 257 && choice != 6 && choice != 13) continue;  // a sweep is slow at any size
      const std::string name = std::to_string(choice) + " of " + std::to_string(size);
      cases.push_back({"optimiser_step " + name, [=] { check(Step{Problem(size), choice}); }});
      cases.push_back(
          {"optimiser_step sweep " + name, [=] { check(Sweep{Problem(size), choice}); }});
    }
  }
  // One more element than the largest grid has threads.
  cases.push_back(
      {"optimiser_step beyond one grid, large", [] { check(Step{Problem(4096 * 256 + 1), 9}); }});
  return cases;
}

}  // namespace kernels
