#include "core/share_sums.h"

#include "kernels/check.h"

namespace kernels {
namespace {

// One sum: its sizes, and where it lies.
struct Shape {
  int64_t rows, size, channels = 0;
};

constexpr int64_t kGap = 3;  // between rows, trajectories and sums; nobody may touch it

struct Sums {
  std::vector<Shape> each;
  int64_t trajectories;

  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<T> out;
    trajmatch::ShareSums<T> params{{}, static_cast<int>(each.size()), trajectories};
    std::vector<std::vector<T>> shares(each.size());
    std::vector<T*> sums(each.size());
    for (size_t i = 0; i < each.size(); ++i) {
      const auto& [rows, size, channels] = each[i];
      const int64_t row = size + kGap, all = rows * row + kGap;
      const std::vector<double> values =
          Random(static_cast<unsigned>(i)).normal(trajectories * all);
      shares[i].assign(values.begin(), values.end());
      sums[i] = out.add("sum " + std::to_string(i), trajectories * row);
      params.each[i] = {shares[i].data(), sums[i], rows, row, size, all, row, channels};
    }
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_sum_shares(params, test_stream());
      return out;
    }
    for (const trajmatch::ShareSum<T>& own : std::vector(params.each, params.each + each.size())) {
      for (int64_t i = 0; i < trajectories * own.size; ++i) {
        const int64_t k = i / own.size, element = i % own.size;
        double sum = 0.0;
        for (int64_t row = 0; row < own.rows; ++row) {
          sum += own.shares[k * own.shares_stride + row * own.row_stride + element];
        }
        int64_t to = element;
        if (own.channels > 0) {
          const int64_t area = own.channels * own.channels;
          const int64_t tap = element / area, in = element / own.channels % own.channels;
          to = (element % own.channels * own.channels + in) * 9 + tap;
        }
        own.sum[k * own.sum_stride + to] = static_cast<T>(sum);
      }
    }
    return out;
  }
};

}  // namespace

std::vector<testing::Case> share_sums_cases() {
  return {
      {"share_sums of one", [] { check(Sums{{{5, 33}}, 1}); }},
      {"share_sums of several trajectories", [] { check(Sums{{{9, 32}, {1, 7}}, 3}); }},
      // No rows give zeros; the last has the transposed order of a convolution's weights.
      {"share_sums of many",
       [] { check(Sums{{{1, 1}, {0, 40}, {8, 64}, {17, 65}, {3, 9 * 4 * 4, 4}}, 2}); }},
      {"share_sums, as many as a launch takes",
       [] { check(Sums{std::vector<Shape>(trajmatch::ShareSums<float>::kMost, {2, 31}), 1}); }},
  };
}

}  // namespace kernels
