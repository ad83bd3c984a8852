#include "core/batch_rows.h"

#include <numeric>

#include "kernels/check.h"

namespace kernels {
namespace {

constexpr int64_t kRows = 40;  // n

// Entries of a batch: with repetitions, or all different.
std::vector<int64_t> batch(int64_t count, bool repeated) {
  if (repeated) return Random(static_cast<unsigned>(count)).indices(count, kRows);
  std::vector<int64_t> index(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) index[static_cast<size_t>(i)] = i * 7 % kRows;
  return index;
}

struct Gather {
  std::vector<int64_t> index;
  int64_t row_size;
  int64_t trajectories = 1, steps = 1;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t count = static_cast<int64_t>(index.size());
    const Input<T> rows(Random(1).normal(trajectories * kRows * row_size));
    Outputs<T> out;
    const trajmatch::GatherRows<T> params{
        {index.data(), count / trajectories / steps, kRows, trajectories},
        count,
        row_size,
        rows.get(),
        out.add("out", count * row_size)};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_gather_rows(params, test_stream());
    } else {
      trajmatch::cpu::gather_rows(params, 0, count);
    }
    return out;
  }
};

struct Scatter {
  std::vector<int64_t> index;
  int64_t row_size;
  int64_t trajectories = 1;

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t count = static_cast<int64_t>(index.size());
    const Input<T> grad(Random(2).normal(count * row_size)), scale(Random(4).normal(trajectories));
    Outputs<T> out;
    T* const rows = out.add("rows", Random(3).normal(trajectories * kRows * row_size));
    const trajmatch::ScatterAddRows<T> params{
        {index.data(), count / trajectories, kRows, trajectories},
        row_size,
        grad.get(),
        scale.get(),
        rows};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_scatter_add_rows(params, test_stream());
    } else {
      trajmatch::cpu::scatter_add_rows(params, 0, row_size);
    }
    return out;
  }
};

// Rows of labels.
void check_integers(int64_t count, int64_t row_size) {
  const std::vector<int64_t> index = batch(count, true);
  std::vector<int64_t> rows(static_cast<size_t>(kRows * row_size));
  std::iota(rows.begin(), rows.end(), int64_t{1} << 40);
  std::vector<int64_t> out(static_cast<size_t>(count * row_size), -1);
  trajmatch::cuda::launch_gather_rows<int64_t>(
      {{index.data(), count, kRows}, count, row_size, rows.data(), out.data()}, test_stream());
  for (int64_t i = 0; i < count * row_size; ++i) {
    const int64_t row = index[static_cast<size_t>(i / row_size)];
    testing::expect(
        out[static_cast<size_t>(i)] == (int64_t{1} << 40) + row * row_size + i % row_size,
        "wrong integer");
  }
}

// Indices that are none: gathered as what is no number, and scattered nowhere. Those of one
// trajectory may not reach the rows of its neighbour.
void check_wrong_indices() {
  const std::vector<int64_t> index{1, kRows, -1, 1, kRows, -1};
  const Input<double> rows(Random(1).normal(2 * kRows)), scale({1.0, 1.0});
  std::vector<double> out(6), to(2 * kRows);
  const trajmatch::BatchIndex batch{index.data(), 3, kRows, 2};
  trajmatch::cuda::launch_gather_rows<double>({batch, 6, 1, rows.get(), out.data()}, test_stream());
  trajmatch::cuda::launch_scatter_add_rows<double>({batch, 1, rows.get(), scale.get(), to.data()},
                                                   test_stream());
  for (int64_t k = 0; k < 2; ++k) {
    const double* const found = out.data() + 3 * k;
    testing::expect(
        found[0] == rows.get()[k * kRows + 1] && found[1] != found[1] && found[2] != found[2],
        "a wrong index gathers a number");
    for (int64_t row = 0; row < kRows; ++row) {
      testing::expect(
          to[static_cast<size_t>(k * kRows + row)] == (row == 1 ? rows.get()[3 * k] : 0.0),
          "a wrong index scatters");
    }
  }
}

}  // namespace

std::vector<testing::Case> batch_rows_cases() {
  std::vector<testing::Case> cases;
  for (const int64_t count : {1, 3, 32, 33}) {
    for (const int64_t row_size : {1, 10, 256, 257}) {
      const std::string name =
          "batch_rows " + std::to_string(count) + " of " + std::to_string(row_size);
      cases.push_back({name, [count, row_size] {
                         for (const bool repeated : {false, true}) {
                           check(Gather{batch(count, repeated), row_size});
                           check(Scatter{batch(count, repeated), row_size});
                         }
                         check_integers(count, row_size);
                       }});
    }
  }
  cases.push_back({"batch_rows, one row a hundred times",
                   [] { check(Scatter{std::vector<int64_t>(100, 17), 33}); }});
  cases.push_back({"batch_rows of several trajectories", [] {
                     check(Gather{batch(99, true), 10, 3});
                     check(Gather{batch(90, true), 10, 3, 5});
                     check(Scatter{batch(99, true), 257, 3});
                   }});
  cases.push_back({"batch_rows of wrong indices", check_wrong_indices});
  cases.push_back({"batch_rows of nothing", [] {
                     check(Gather{{}, 3});
                     check(Scatter{{}, 3});
                   }});
  return cases;
}

}  // namespace kernels
