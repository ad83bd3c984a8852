#include "core/soft_cross_entropy.h"

#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::StudentLoss;

struct Rows {
  Rows(int64_t batch_, int64_t classes_, bool soft_, bool factor_,
       StudentLoss loss_ = StudentLoss::kCrossEntropy, int64_t trajectories_ = 1)
      : batch(batch_),
        classes(classes_),
        trajectories(trajectories_),
        soft(soft_),
        factor(factor_),
        loss(loss_) {
    Random random(static_cast<unsigned>(batch * 1000 + classes));
    for (std::vector<double>* matrix : {&logits, &target, &logits_tangent, &target_tangent}) {
      *matrix = random.normal(count() * classes, 0.0, 3.0);
    }
    index = random.indices(count(), classes);
  }
  int64_t count() const { return trajectories * batch; }
  // Adds the rows of each trajectory.
  template <class T>
  void sum(const T* rows, T* sums) const {
    for (int64_t k = 0; k < trajectories; ++k) {
      trajmatch::cpu::sum_rows(rows + k * batch, batch, sums + k);
    }
  }
  int64_t batch, classes, trajectories;
  bool soft;    // targets instead of class indices
  bool factor;  // grad_loss is given
  StudentLoss loss;
  std::vector<double> logits, target, logits_tangent, target_tangent;
  std::vector<int64_t> index;
};

// Rows in one precision.
template <class T>
struct Inputs {
  explicit Inputs(const Rows& rows)
      : grad_loss({-1.5}, rows.factor),
        logits(rows.logits),
        target(rows.target, rows.soft),
        params{rows.batch,      rows.classes, 0.7,
               grad_loss.get(), logits.get(), rows.soft ? nullptr : rows.index.data(),
               target.get(),    rows.loss,    rows.trajectories} {}
  Input<T> grad_loss, logits, target;
  trajmatch::SoftCrossEntropyInputs<T> params;
};

struct Forward {
  Rows rows;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Inputs<T> in(rows);
    Outputs<T> out;
    T* const row_loss = out.add("row_loss", rows.count());
    const trajmatch::SoftCrossEntropyForward<T> params{in.params, row_loss,
                                                       out.add("loss", rows.trajectories)};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_soft_cross_entropy_forward(params, test_stream());
    } else {
      trajmatch::cpu::soft_cross_entropy_forward(params, 0, rows.count());
      rows.sum(params.row_loss, params.loss);
    }
    return out;
  }
};

struct Backward {
  Rows rows;
  bool wants_target;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Inputs<T> in(rows);
    const int64_t count = rows.count() * rows.classes;
    Outputs<T> out;
    T* const grad_logits = out.add("grad_logits", count);
    const trajmatch::SoftCrossEntropyBackward<T> params{
        in.params, grad_logits, out.add("grad_target", count, wants_target)};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_soft_cross_entropy_backward(params, test_stream());
    } else {
      trajmatch::cpu::soft_cross_entropy_backward(params, 0, rows.count());
    }
    return out;
  }
};

struct BackwardTangent {
  Rows rows;
  bool has_logits_tangent, has_target_tangent, wants_target;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const Inputs<T> in(rows);
    const Input<T> logits_tangent(rows.logits_tangent, has_logits_tangent);
    const Input<T> target_tangent(rows.target_tangent, has_target_tangent);
    const int64_t count = rows.count() * rows.classes;
    Outputs<T> out;
    T* const row_directional = out.add("row_directional", rows.count());
    T* const directional = out.add("directional", rows.trajectories);
    T* const grad_logits = out.add("grad_logits_tangent", count);
    const trajmatch::SoftCrossEntropyBackwardTangent<T> params{
        in.params,
        logits_tangent.get(),
        target_tangent.get(),
        row_directional,
        directional,
        grad_logits,
        out.add("grad_target_tangent", count, wants_target)};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_soft_cross_entropy_backward_tangent(params, test_stream());
    } else {
      trajmatch::cpu::soft_cross_entropy_backward_tangent(params, 0, rows.count());
      rows.sum(params.row_directional, params.directional);
    }
    return out;
  }
};

void check_all(const Rows& rows) {
  check(Forward{rows});
  for (const bool wants_target : {false, true}) {
    if (wants_target && !rows.soft) continue;
    check(Backward{rows, wants_target});
    for (const bool has_target_tangent : {false, true}) {
      if (has_target_tangent && !rows.soft) continue;
      check(BackwardTangent{rows, true, has_target_tangent, wants_target});
      check(BackwardTangent{rows, false, has_target_tangent, wants_target});
    }
  }
}

// A class that does not exist makes its row NaN, and no other.
void check_unknown_class() {
  Rows rows(6, 5, false, false);
  rows.index[1] = 5;
  rows.index[4] = -1;
  check_all(rows);
  const std::vector<float> grad =
      Backward{rows, false}.run<float>(Backend::kCuda).tensors()[0].second;
  for (int64_t i = 0; i < 30; ++i) {
    const bool unknown = i / 5 == 1 || i / 5 == 4;
    testing::expect(std::isnan(grad[static_cast<size_t>(i)]) == unknown, "NaN in the wrong row");
  }
}

}  // namespace

std::vector<testing::Case> soft_cross_entropy_cases() {
  std::vector<testing::Case> cases;
  for (const int64_t batch : {1, 5}) {
    for (const int64_t classes : {1, 10, 31, 32, 33, 100}) {
      const std::string name =
          "soft_cross_entropy " + std::to_string(batch) + " of " + std::to_string(classes);
      cases.push_back({name, [batch, classes] {
                         for (const bool soft : {false, true}) {
                           check_all(Rows(batch, classes, soft, (batch + classes) % 2 == 0));
                         }
                         for (const StudentLoss loss :
                              {StudentLoss::kMeanSquares, StudentLoss::kProbabilities}) {
                           check_all(Rows(batch, classes, true, batch == 1, loss));
                         }
                       }});
    }
  }
  cases.push_back({"soft_cross_entropy, more rows than the sum's block has threads",
                   [] { check_all(Rows(300, 3, true, true)); }});
  cases.push_back({"soft_cross_entropy of several trajectories", [] {
                     check_all(Rows(5, 10, false, true, StudentLoss::kCrossEntropy, 3));
                     check_all(Rows(7, 3, true, false, StudentLoss::kMeanSquares, 2));
                   }});
  cases.push_back({"soft_cross_entropy with classes that do not exist", check_unknown_class});
  cases.push_back({"soft_cross_entropy of huge logits", [] {
                     Rows rows(4, 10, true, false);
                     for (double& logit : rows.logits) logit *= 1000.0;
                     check_all(rows);
                   }});
  return cases;
}

}  // namespace kernels
