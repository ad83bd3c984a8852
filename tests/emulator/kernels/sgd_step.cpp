#include "core/sgd_step.h"

#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::kReductionBlocks;

constexpr double kMomentum = 0.9;

struct Vectors {
  explicit Vectors(int64_t size_, int64_t trajectories_ = 1)
      : size(size_), trajectories(trajectories_) {
    Random random(static_cast<unsigned>(size));
    for (std::vector<double>* vector : {&a, &b, &c, &d}) *vector = random.normal(total());
    for (int64_t k = 0; k < trajectories; ++k) lr.push_back(0.03125 * static_cast<double>(k + 1));
  }
  int64_t total() const { return trajectories * size; }
  int64_t size, trajectories;
  std::vector<double> a, b, c, d, lr;
};

struct Step {
  Vectors in;
  bool has_buffer, wants_buffer, in_place;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Input<T> theta(in.a), grad(in.b), buffer(in.c, has_buffer), lr(in.lr);
    Outputs<T> out;
    T* const theta_out = in_place ? out.add("theta", in.a) : out.add("theta", in.total());
    T* const buffer_out = !wants_buffer ? nullptr
                          : in_place    ? out.add("buffer", in.c)
                                        : out.add("buffer", in.total());
    const trajmatch::SgdStep<T> params{
        in.size,         in_place ? theta_out : theta.get(),
        grad.get(),      in_place && has_buffer && wants_buffer ? buffer_out : buffer.get(),
        lr.get(),        kMomentum,
        theta_out,       buffer_out,
        in.trajectories,
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_sgd_step(params, test_stream());
    } else {
      trajmatch::cpu::sgd_step(params, 0, in.total());
    }
    return out;
  }
};

struct Adjoint {
  Vectors in;
  bool has_grad_buffer, wants_grad_buffer;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Input<T> grad_theta(in.a), grad_buffer(in.b, has_grad_buffer), buffer(in.c), lr(in.lr);
    std::vector<double> partial(kReductionBlocks, std::nan(""));
    Outputs<T> out;
    const trajmatch::SgdStepAdjoint<T> params{
        in.size,
        grad_theta.get(),
        grad_buffer.get(),
        buffer.get(),
        lr.get(),
        kMomentum,
        out.add("grad_grad", in.size),
        out.add("grad_buffer", in.size, wants_grad_buffer),
        partial.data(),
        out.add("grad_lr", 1),
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_sgd_step_adjoint(params, test_stream());
    } else {
      trajmatch::cpu::sgd_step_adjoint_partial(params, 0, kReductionBlocks);
      trajmatch::cpu::sgd_step_adjoint_finish(params);
    }
    return out;
  }
};

struct Sweep {
  Vectors in;
  bool has_hessian, has_inject, wants_r;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Input<T> hessian_r(in.a, has_hessian), inject(in.b, has_inject), lr(in.lr);
    Outputs<T> out;
    const trajmatch::SgdSweep<T> params{
        in.size,
        lr.get(),
        kMomentum,
        hessian_r.get(),
        inject.get(),
        out.add("adjoint", in.c),
        wants_r ? out.add("r", in.d) : nullptr,
        in.trajectories,
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_sgd_sweep(params, test_stream());
    } else {
      trajmatch::cpu::sgd_sweep(params, 0, in.total());
    }
    return out;
  }
};

void check_elementwise(int64_t size, int64_t trajectories = 1) {
  const Vectors in(size, trajectories);
  for (int choice = 0; choice < 8; ++choice) {
    const bool first = choice % 2 != 0, second = choice / 2 % 2 != 0, third = choice / 4 != 0;
    check(Step{in, first, second, third});
    check(Sweep{in, first, second, third});
  }
}

void check_adjoint(int64_t size) {
  const Vectors in(size);
  check(Adjoint{in, size % 2 == 1, size % 2 == 1});
}

}  // namespace

std::vector<testing::Case> sgd_step_cases() {
  std::vector<testing::Case> cases;
  for (const int64_t size : lengths()) {
    cases.push_back({"sgd_step " + std::to_string(size), [size] { check_elementwise(size); }});
  }
  for (const int64_t size : reduced_lengths()) {
    cases.push_back({"sgd_step adjoint " + std::to_string(size), [size] { check_adjoint(size); }});
  }
  cases.push_back({"sgd_step adjoint without momentum", [] { check_adjoint(10008); }});
  cases.push_back({"sgd_step of nothing", [] {
                     check_elementwise(0);
                     check_adjoint(0);
                   }});
  cases.push_back({"sgd_step of several trajectories", [] {
                     check_elementwise(1, 3);
                     check_elementwise(1000, 2);
                   }});
  // One more element than the largest grid has threads.
  cases.push_back({"sgd_step beyond one grid, large",
                   [] { check(Step{Vectors(4096 * 256 + 1), true, true, false}); }});
  return cases;
}

}  // namespace kernels
