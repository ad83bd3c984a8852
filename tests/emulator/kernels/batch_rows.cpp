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

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t count = static_cast<int64_t>(index.size());
    const Input<T> rows(Random(1).normal(kRows * row_size));
    Outputs<T> out;
    const trajmatch::GatherRows<T> params{
        count, kRows, row_size, rows.get(), index.data(), out.add("out", count * row_size)};
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

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t count = static_cast<int64_t>(index.size());
    const Input<T> grad(Random(2).normal(count * row_size)), scale({0.375});
    Outputs<T> out;
    const trajmatch::ScatterAddRows<T> params{count,
                                              kRows,
                                              row_size,
                                              grad.get(),
                                              index.data(),
                                              scale.get(),
                                              out.add("rows", Random(3).normal(kRows * row_size))};
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
      {count, kRows, row_size, rows.data(), index.data(), out.data()}, test_stream());
  for (int64_t i = 0; i < count * row_size; ++i) {
    const int64_t row = index[static_cast<size_t>(i / row_size)];
    testing::expect(
        out[static_cast<size_t>(i)] == (int64_t{1} << 40) + row * row_size + i % row_size,
        "wrong integer");
  }
}

// Indices that are none: gathered as what is no number, and scattered nowhere.
void check_wrong_indices() {
  const std::vector<int64_t> index{1, kRows, -1};
  const Input<double> rows(Random(1).normal(kRows)), scale({1.0});
  std::vector<double> out(3), to(kRows);
  trajmatch::cuda::launch_gather_rows<double>({3, kRows, 1, rows.get(), index.data(), out.data()},
                                              test_stream());
  testing::expect(out[0] == rows.get()[1] && out[1] != out[1] && out[2] != out[2],
                  "a wrong index gathers a number");
  trajmatch::cuda::launch_scatter_add_rows<double>(
      {3, kRows, 1, rows.get(), index.data(), scale.get(), to.data()}, test_stream());
  for (int64_t row = 0; row < kRows; ++row) {
    testing::expect(to[static_cast<size_t>(row)] == (row == 1 ? rows.get()[0] : 0.0),
                    "a wrong index scatters");
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
  cases.push_back({"batch_rows of wrong indices", check_wrong_indices});
  cases.push_back({"batch_rows of nothing", [] {
                     check(Gather{{}, 3});
                     check(Scatter{{}, 3});
                   }});
  return cases;
}

}  // namespace kernels
