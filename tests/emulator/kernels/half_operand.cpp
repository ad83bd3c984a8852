#include "core/half_operand.h"

#include "cuda/half_operand.cuh"
#include "cuda/half_precision.cuh"
#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::kMagnitudes;
using trajmatch::cuda::half_value;
using trajmatch::cuda::round_to_half;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect_half(float value, uint32_t half) {
  const std::string number = std::to_string(value);
  testing::expect(round_to_half(value) == half, number + " is rounded to another half");
  testing::expect(round_to_half(-value) == (half | 0x8000u), "-" + number + " is");
}

// Every half, and every boundary between two of them with its neighbours in float32: rounding is
// monotonic, so that this is all there is to it.
void check_rounding() {
  for (uint32_t half = 0; half < 0x7c00u; ++half) {
    const int fraction = static_cast<int>(half % 1024), exponent = static_cast<int>(half / 1024);
    const float value = exponent == 0
                            ? std::ldexp(static_cast<float>(fraction), -24)
                            : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    testing::expect(half_value(half) == value && half_value(half | 0x8000u) == -value,
                    "half " + std::to_string(half) + " is another number");
    expect_half(value, half);
    // Beyond the last finite one lies what would be 2^16.
    const float next = half + 1 < 0x7c00u ? half_value(half + 1) : 65536.0f;
    const float middle = value + (next - value) / 2;
    expect_half(std::nextafter(middle, 0.0f), half);
    expect_half(middle, half % 2 == 0 ? half : half + 1);
    expect_half(std::nextafter(middle, kInfinity), half + 1);
  }
  expect_half(1e-30f, 0);
  expect_half(std::numeric_limits<float>::denorm_min(), 0);
  expect_half(std::numeric_limits<float>::max(), 0x7c00u);
  expect_half(kInfinity, 0x7c00u);
  testing::expect(half_value(0xfc00u) == -kInfinity, "infinity is another number");
  testing::expect(std::isnan(half_value(round_to_half(std::nanf("")))), "NaN is lost");
  testing::expect(trajmatch::cuda::two_halves(1.0f, -2.0f) == 0xc0003c00u, "the order is another");
}

void check_exponents() {
  using trajmatch::cuda::scale_exponent;
  for (const float largest : {1.0f, 1.999f, 3e-9f, 7e6f, std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::min()}) {
    const double scaled = std::ldexp(static_cast<double>(largest), scale_exponent(largest));
    const bool capped = scale_exponent(largest) == 126;
    testing::expect(scaled < 32768.0 && (scaled >= 16384.0 || capped),
                    std::to_string(largest) + " becomes " + std::to_string(scaled));
  }
  testing::expect(scale_exponent(0.0f) == 0, "zeros are scaled");
  testing::expect(scale_exponent(std::numeric_limits<float>::denorm_min()) == 126,
                  "a power of two is no float32");
  using trajmatch::cuda::PowerOfTwo;
  for (const int exponent : {-252, -251, -127, -1, 0, 1, 127, 251, 252}) {
    const float start = std::ldexp(1.5f, -exponent / 2);
    testing::expect(PowerOfTwo(exponent).times(start) == std::ldexp(start, exponent),
                    "2^" + std::to_string(exponent) + " is another number");
  }
  testing::expect(PowerOfTwo(-400).times(0x1p41f) == 0.0f, "2^-400 is large");
}

// A tensor of each of K trajectories, some numbers apart, and a second one that is just rounded.
struct Prepared {
  int64_t size;
  std::vector<double> values;
  static constexpr int64_t kTrajectories = 2, kGap = 3;

  explicit Prepared(int64_t size_) : size(size_) {
    Random random(static_cast<unsigned>(size));
    values = random.normal(kTrajectories * (size + kGap));
    values[size / 2] = -40.0;
    values[size + kGap + size - 1] = 3e-5;  // the second trajectory's last
    for (int64_t i = size + kGap; i < 2 * size + kGap - 1; ++i) values[i] *= 1e-6;
    for (int64_t k = 0; k < kTrajectories; ++k) {
      for (int64_t i = 0; i < kGap; ++i) values[k * (size + kGap) + size + i] = 1e9;
    }
    if (size < 3) return;
    values[0] = std::nan("");
    values[1] = -kInfinity;
  }

  // Of the kernels and by definition, in whatever precision is asked for: both are float32.
  template <class T>
  Outputs<T> run(Backend backend) const {
    Outputs<float> out;
    float* const magnitudes = out.add("magnitudes", kTrajectories * kMagnitudes);
    const int64_t whole = (size + kGap) / 4 * 4;  // of the values as they lie, gap and all
    float* const halves = out.add("halves", whole / 2);
    const Input<float> x(values);
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_measure_magnitudes(
          {{{x.get(), size, size + kGap, magnitudes}}, 1, kTrajectories}, test_stream());
      std::vector<float> ones(kMagnitudes, 0.5f);
      trajmatch::cuda::launch_round_operands({{{x.get(), ones.data(), halves}}, 1, 1, whole},
                                             test_stream());
    }
    return out;
  }
};

void check_prepared(int64_t size) {
  const Prepared prepared(size);
  const auto results = run_under_schedules<float>(prepared).tensors();
  for (int64_t k = 0; k < Prepared::kTrajectories; ++k) {
    float largest = 0.0f, measured = 0.0f;
    for (int64_t i = 0; i < size; ++i) {
      const float value = std::abs(static_cast<float>(prepared.values[k * (size + 3) + i]));
      if (std::isfinite(value)) largest = std::max(largest, value);
    }
    for (int64_t i = 0; i < kMagnitudes; ++i) {
      const float magnitude = results[0].second[k * kMagnitudes + i];
      testing::expect(magnitude >= 0.0f, "a magnitude is missing");
      measured = std::max(measured, magnitude);
    }
    testing::expect(measured == largest, "another magnitude was measured");
  }
  const std::vector<float>& halves = results[1].second;
  for (size_t i = 0; i < 2 * halves.size(); ++i) {
    // 0.5 was given as the largest, which 2^15 makes 2^14.
    const uint32_t wanted = round_to_half(0x1p15f * static_cast<float>(prepared.values[i]));
    uint32_t word = 0;
    std::memcpy(&word, &halves[i / 2], sizeof(word));
    testing::expect((i % 2 == 0 ? word & 0xffffu : word >> 16) == wanted,
                    "number " + std::to_string(i) + " became another half");
  }
}

}  // namespace

std::vector<testing::Case> half_operand_cases() {
  std::vector<testing::Case> cases{{"half_operand rounding", check_rounding},
                                   {"half_operand exponents", check_exponents}};
  // Sizes that are read in fours where they begin at 16 bytes, and others.
  for (const int64_t size : {1, 33, 4097, 4100}) {
    cases.push_back({"half_operand of " + std::to_string(size), [size] { check_prepared(size); }});
  }
  return cases;
}

}  // namespace kernels
