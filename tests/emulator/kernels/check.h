// How a kernel is judged: its results against those of the CPU loops, in the same precision and in
// float64, and against its own under another schedule of warps and blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/macros.h"
#include "cuda/tensor_core.cuh"
#include "runtime/engine.h"
#include "runtime/launch.h"
#include "runtime/options.h"
#include "testing.h"

namespace kernels {

enum class Backend { kCpu, kCuda };

// Every launch is given this stream: no kernel may go to another.
inline trajmatch::Stream test_stream() { return reinterpret_cast<trajmatch::Stream>(0x5eed); }

// Inputs, the same in every precision: numbers that float32 holds.
class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  std::vector<double> normal(int64_t count, double mean = 0.0, double deviation = 1.0) {
    std::normal_distribution<double> distribution(mean, deviation);
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = static_cast<float>(distribution(engine_));
    return values;
  }
  std::vector<int64_t> indices(int64_t count, int64_t end) {
    std::uniform_int_distribution<int64_t> distribution(0, end - 1);
    std::vector<int64_t> values(static_cast<size_t>(count));
    for (int64_t& value : values) value = distribution(engine_);
    return values;
  }

 private:
  std::mt19937 engine_;
};

// A tensor that an operator reads: exactly as long as it should be, so that AddressSanitizer sees a
// read beyond it; or null.
template <class T>
class Input {
 public:
  Input(const std::vector<double>& values, bool given = true) : given_(given) {
    if (given) values_.assign(values.begin(), values.end());
  }
  const T* get() const { return given_ ? values_.data() : nullptr; }

 private:
  bool given_;
  std::vector<T> values_;
};

// The tensors that an operator writes, by name, in the precision of the operator.
template <class T>
class Outputs {
 public:
  // A tensor that starts as NaN, so that what is never written shows; or null. `values` may give it
  // another start, for what is updated in place.
  T* add(const std::string& name, int64_t count, bool wanted = true) {
    if (!wanted) return nullptr;
    return add(name, std::vector<double>(static_cast<size_t>(count),
                                         std::numeric_limits<double>::quiet_NaN()));
  }
  T* add(const std::string& name, const std::vector<double>& values) {
    tensors_.emplace_back(name, std::vector<T>(values.begin(), values.end()));
    return tensors_.back().second.data();
  }
  const std::vector<std::pair<std::string, std::vector<T>>>& tensors() const { return tensors_; }

 private:
  std::vector<std::pair<std::string, std::vector<T>>> tensors_;
};

// Largest error against the float64 result, as a part of that result's largest value. NaN where
// only one of the two is NaN.
template <class T>
double relative_error(const std::vector<T>& values, const std::vector<double>& exact) {
  double error = 0.0, largest = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    if (std::isnan(exact[i]) != std::isnan(values[i])) return std::nan("");
    if (std::isnan(exact[i])) continue;
    error = std::max(error, std::abs(values[i] - exact[i]));
    largest = std::max(largest, std::abs(exact[i]));
  }
  return largest == 0.0 ? error : error / largest;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Schedules of the next case that runs: each pair of the four in turn, or all of them.
inline std::vector<emulator::Schedule> schedules_of_case() {
  using emulator::Schedule;
  const emulator::Options& options = emulator::options();
  if (!emulator::kReportsDeadlocks || options.given) return {2, options.schedule};
  const std::vector<Schedule> all{Schedule::kRoundRobin, Schedule::kLowestFirst,
                                  Schedule::kHighestFirst, Schedule::kRandom};
  if (!options.pairs) return all;
  static size_t cases = 0;
  const size_t first = cases % 4, distance = 1 + cases / 4 % 3;
  ++cases;
  return {all[first], all[(first + distance) % 4]};
}

// The results under each schedule of warps and blocks; the last one, where all are the same bits
// and all launches went to the given stream.
template <class T, class Operator>
Outputs<T> run_under_schedules(const Operator& op) {
  emulator::launch_log().clear();
  Outputs<T> last;
  for (const emulator::Schedule schedule : schedules_of_case()) {
    emulator::options().schedule = schedule;
    Outputs<T> now = op.template run<T>(Backend::kCuda);
    for (size_t i = 0; i < last.tensors().size(); ++i) {
      const auto& [name, values] = now.tensors()[i];
      testing::expect(same_bits(values, last.tensors()[i].second),
                      name + " differs between schedules");
    }
    last = std::move(now);
  }
  for (const emulator::LaunchRecord& launch : emulator::launch_log()) {
    testing::expect(launch.stream == test_stream(), launch.kernel + " left the given stream");
  }
  return last;
}

// Operator: has `template <class T> Outputs<T> run(Backend) const`.
template <class T, class Operator>
void check_precision(const Operator& op, const Outputs<double>& exact) {
  const Outputs<T> cuda = run_under_schedules<T>(op);
  const Outputs<T> cpu = op.template run<T>(Backend::kCpu);
  // float32 may be off by twice the error that the CPU loops' own rounding makes, and a little.
  // What float64 is compared with is itself rounded, to the same precision: cancellation then
  // shows.
  const double floor = std::is_same_v<T, float> ? 1e-6 : 2e-13;
  for (size_t i = 0; i < exact.tensors().size(); ++i) {
    const auto& [name, expected] = exact.tensors()[i];
    const double error = relative_error(cuda.tensors()[i].second, expected);
    const double allowed = floor + 2.0 * relative_error(cpu.tensors()[i].second, expected);
    testing::expect(error <= allowed, name + (std::is_same_v<T, float> ? " (float)" : " (double)") +
                                          " is off by " + std::to_string(error / floor) +
                                          " times the floor, allowed are " +
                                          std::to_string(allowed / floor));
  }
}

template <class Operator>
void check(const Operator& op) {
  const Outputs<double> exact = op.template run<double>(Backend::kCpu);
  check_precision<float>(op, exact);
  // Races are the same in both precisions, and OS threads are slow to start.
  if (emulator::kReportsDeadlocks) check_precision<double>(op, exact);
}

// For a kernel that exists in float32 alone.
template <class Operator>
void check_float(const Operator& op) {
  check_precision<float>(op, op.template run<double>(Backend::kCpu));
}

// Lengths around the sizes of warps and blocks, and primes.
inline std::vector<int64_t> lengths() {
  return {1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 257, 509, 1021, 10007};
}

// Lengths of vectors that are reduced: kReductionBlocks is 256, its blocks have 256 threads.
inline std::vector<int64_t> reduced_lengths() { return {1, 257, 70001}; }

std::vector<testing::Case> param_distance_cases();
std::vector<testing::Case> sgd_step_cases();
std::vector<testing::Case> optimiser_step_cases();
std::vector<testing::Case> batch_rows_cases();
std::vector<testing::Case> classifier_cases();
std::vector<testing::Case> dsa_cases();
std::vector<testing::Case> soft_cross_entropy_cases();
std::vector<testing::Case> norm_act_pool_cases();
std::vector<testing::Case> first_layer_cases();
std::vector<testing::Case> fused_convolution_cases();
std::vector<testing::Case> half_operand_cases();
std::vector<testing::Case> share_sums_cases();

// Op has a flag `rounds`: with it, the results of these names are those without it, rounded to
// TF32. Other results do not change.
template <class Op>
void check_rounds(const std::set<std::string>& names, Op op) {
  const Outputs<float> whole = op.template run<float>(Backend::kCuda);
  op.rounds = true;
  const Outputs<float> found = op.template run<float>(Backend::kCuda);
  size_t rounded = 0;
  for (size_t i = 0; i < whole.tensors().size(); ++i) {
    auto [name, wanted] = whole.tensors()[i];
    if (names.count(name) > 0) {
      ++rounded;
      for (float& value : wanted) value = trajmatch::cuda::round_to_tf32(value);
    }
    testing::expect(same_bits(found.tensors()[i].second, wanted), name + " is not rounded so");
  }
  testing::expect(rounded == names.size(), "a result to round is missing");
}

}  // namespace kernels
