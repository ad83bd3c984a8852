#include "core/dsa.h"

#include <cmath>

#include "kernels/check.h"

namespace kernels {
namespace {

using trajmatch::DsaPass;

struct Dsa {
  int64_t channels, height, width;
  bool channels_last;
  DsaPass pass;
  std::vector<double> rows;         // [B, 5]
  std::vector<int64_t> index = {};  // [2, B / 2] of two trajectories with three images each

  template <class T>
  Outputs<T> run(Backend backend) const {
    const int64_t batch = static_cast<int64_t>(rows.size()) / trajmatch::kDsaColumns;
    const int64_t size = batch * channels * height * width;
    const Input<T> in(Random(1).normal(size));
    Outputs<T> out;
    trajmatch::Dsa<T> params{pass,        batch,    channels,
                             height,      width,    channels_last,
                             rows.data(), in.get(), out.add("out", size)};
    if (!index.empty()) params.sources = {index.data(), batch / 2, 3, 2};
    if (backend == Backend::kCuda) {
      trajmatch::cuda::launch_dsa(params, test_stream());
    } else {
      trajmatch::cpu::dsa(params, 0, batch);
    }
    return out;
  }
};

// Every kind, as drawn and as nobody would draw it: shifts and rectangles beyond the image, maps
// that shrink much, enlarge much, turn and mirror, and two that are not invertible.
const std::vector<double> kRows = {
    0, 0.3,  0.6,   1.4,  0,     // color
    1, -2,   1,     0,    0,     // crop
    1, 1,    -3,    0,    0,     //
    1, 100,  -50,   0,    0,     //
    2, 1,    -2,    4,    5,     // cutout
    2, -9,   3,     200,  1,     //
    2, 50,   0,     2,    2,     //
    3, 1,    0,     0,    0,     // flip
    3, 0,    0,     0,    0,     //
    4, 1,    0,     0,    1,     // sample: identity
    4, 1.17, 0,     0,    0.85,  // scale
    4, 0.97, -0.25, 0.25, 0.97,  // rotate
    4, 3.5,  1,     0.4,  -2.5,  //
    4, 0.3,  0.1,   -0.2, 0.4,   //
    4, 0,    0,     0,    0,     //
    4, 1,    1,     1,    1,     //
};

std::string name_of(const Dsa& op) {
  const char* passes[] = {"forward", "tangent", "backward"};
  return std::string("dsa ") + passes[static_cast<int>(op.pass)] +
         (op.index.empty() ? " of " : " of a batch of ") + std::to_string(op.channels) + " x " +
         std::to_string(op.height) + " x " + std::to_string(op.width) +
         (op.channels_last ? ", channels last" : "");
}

// An image of an unknown kind, and one that does not exist, become NaN; the image between them does
// not.
void check_unknown() {
  const std::vector<float> in(8, 1.0f);
  std::vector<float> out(12, 0.0f);
  const std::vector<double> rows = {5, 0, 0, 0, 0, 3, 0, 0, 0, 0, 3, 0, 0, 0, 0};
  const std::vector<int64_t> index = {0, 1, 2};
  trajmatch::cuda::launch_dsa<float>({DsaPass::kForward,
                                      3,
                                      1,
                                      2,
                                      2,
                                      false,
                                      rows.data(),
                                      in.data(),
                                      out.data(),
                                      {index.data(), 3, 2}},
                                     test_stream());
  for (size_t i = 0; i < out.size(); ++i) {
    testing::expect(i / 4 == 1 ? out[i] == 1.0f : std::isnan(out[i]), "wrong value");
  }
}

}  // namespace

std::vector<testing::Case> dsa_cases() {
  std::vector<testing::Case> cases;
  const auto add = [&](const Dsa& op) { cases.push_back({name_of(op), [op] { check(op); }}); };
  for (const DsaPass pass : {DsaPass::kForward, DsaPass::kTangent, DsaPass::kBackward}) {
    for (const bool channels_last : {false, true}) {
      add({3, 7, 9, channels_last, pass, kRows});
      add({5, 4, 4, channels_last, pass, kRows});
    }
    add({1, 17, 16, false, pass, kRows});  // a block and a part of one
    add({2, 1, 6, false, pass, kRows});
    add({1, 5, 1, false, pass, kRows});
  }
  // Threads take more than one pixel each.
  const std::vector<double> some = {0, 0.3, 0.6, 1.4, 0, 4, 0.97, -0.25, 0.25, 0.97};
  add({1, 67, 65, false, DsaPass::kForward, some});
  add({1, 67, 65, false, DsaPass::kBackward, some});
  cases.push_back({"dsa of nothing", [] { check(Dsa{3, 4, 4, false, DsaPass::kForward, {}}); }});
  add({3, 7, 9, true, DsaPass::kForward, kRows, {2, 0, 0, 1, 2, 1, 0, 2, 1, 1, 2, 0, 1, 0, 2, 2}});
  cases.push_back({"dsa of an unknown kind or image", check_unknown});
  return cases;
}

}  // namespace kernels
