#include "core/param_distance.h"

#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::kReductionBlocks;

struct Vectors {
  explicit Vectors(int64_t size_) : size(size_) {
    Random random(static_cast<unsigned>(size));
    student = random.normal(size);
    target = random.normal(size);
    start = random.normal(size, 1.0);
  }
  int64_t size;
  std::vector<double> student, target, start;
};

struct Forward {
  Vectors in;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Input<T> student(in.student), target(in.target), start(in.start);
    std::vector<double> partial(2 * kReductionBlocks, std::nan(""));
    std::vector<double> sums(2, std::nan(""));
    Outputs<T> out;
    const trajmatch::ParamDistance<T> params{
        in.size,        student.get(), target.get(),       start.get(),
        partial.data(), sums.data(),   out.add("loss", 1),
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_param_distance(params, test_stream());
    } else {
      trajmatch::cpu::param_distance_partial(params, 0, kReductionBlocks);
      trajmatch::cpu::param_distance_finish(params);
    }
    out.add("sums", sums);
    return out;
  }
};

struct Backward {
  Vectors in;
  int wanted;  // a bit for each of the three gradients

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Input<T> student(in.student), target(in.target), start(in.start), grad_loss({0.75});
    const std::vector<double> sums = {2.5, 1.25};
    Outputs<T> out;
    const trajmatch::ParamDistanceBackward<T> params{
        in.size,
        student.get(),
        target.get(),
        start.get(),
        sums.data(),
        grad_loss.get(),
        out.add("grad_student", in.size, (wanted & 1) != 0),
        out.add("grad_target", in.size, (wanted & 2) != 0),
        out.add("grad_start", in.size, (wanted & 4) != 0),
    };
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_param_distance_backward(params, test_stream());
    } else {
      trajmatch::cpu::param_distance_backward(params, 0, in.size);
    }
    return out;
  }
};

}  // namespace

std::vector<testing::Case> param_distance_cases() {
  std::vector<testing::Case> cases;
  for (const int64_t size : lengths()) {
    cases.push_back({"param_distance backward " + std::to_string(size), [size] {
                       for (int wanted = 1; wanted < 8; ++wanted) {
                         check(Backward{Vectors(size), wanted});
                       }
                     }});
  }
  for (const int64_t size : reduced_lengths()) {
    cases.push_back(
        {"param_distance " + std::to_string(size), [size] { check(Forward{Vectors(size)}); }});
  }
  cases.push_back({"param_distance of nothing", [] { check(Forward{Vectors(0)}); }});
  cases.push_back({"param_distance of nothing, backward", [] {
                     emulator::launch_log().clear();
                     check(Backward{Vectors(0), 7});
                     testing::expect(emulator::launch_log().empty(), "something was launched");
                   }});
  return cases;
}

}  // namespace kernels
