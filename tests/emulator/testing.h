// The few lines of a test framework that the programs in this folder need: named cases, all of them
// run, every failure printed, exit status 1 if any.
#pragma once

#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace testing {

struct Case {
  std::string name;
  std::function<void()> run;
};

inline void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// What the exception thrown by `run` says. Failure to throw is a failure of the test.
inline std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const std::exception& error) {
    return error.what();
  }
  throw std::runtime_error("expected an exception, but there was none");
}

inline void expect_contains(const std::string& text, const std::string& part) {
  expect(text.find(part) != std::string::npos, "expected '" + part + "' in '" + text + "'");
}

// Which cases a process runs: every `count`th, from case `first` on.
struct Share {
  size_t first = 0;
  size_t count = 1;
};

// Runs the cases of a share whose name contains one of `filters`, or all without filters; at least
// one must.
inline int run_all(const std::vector<Case>& cases, const std::vector<std::string>& filters = {},
                   Share share = {}) {
  size_t run = 0;
  size_t failed = 0;
  for (size_t i = share.first; i < cases.size(); i += share.count) {
    const Case& one = cases[i];
    const bool chosen = std::any_of(filters.begin(), filters.end(), [&](const std::string& part) {
      return one.name.find(part) != std::string::npos;
    });
    if (!filters.empty() && !chosen) continue;
    ++run;
    try {
      one.run();
    } catch (const std::exception& error) {
      ++failed;
      std::fprintf(stderr, "FAILED %s: %s\n", one.name.c_str(), error.what());
    }
  }
  std::printf("%zu of %zu cases passed\n", run - failed, run);
  return failed == 0 && run > 0 ? 0 : 1;
}

}  // namespace testing
