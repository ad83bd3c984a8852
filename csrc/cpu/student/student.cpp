#include "core/student.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/soft_cross_entropy.h"
#include "core/student_host.h"
#include "cpu/isa.h"
#include "cpu/student/call.h"
#include "cpu/student/norm.h"
#include "cpu/student/profile.h"

#define TM_KERNELS "cpu/student/walk_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

namespace {

// float64 exists for checks: it runs the portable loops everywhere.
void run(const StudentCall<float>& call) { TM_DISPATCH_ISA(run_walk, call); }
void run(const StudentCall<double>& call) { portable::run_walk(call); }

template <class T>
StudentCall<T> call_of(const StudentGradient<T>& g, int64_t parts, const InParallel& in_parallel,
                       Pages& pages) {
  return {g.network,     g.batch, false,  g.theta,      nullptr,
          nullptr,       nullptr, g.loss, g.grad_theta, g.grad_images,
          g.grad_target, g.tape,  parts,  &in_parallel, &pages};
}

template <class T>
StudentCall<T> call_of(const StudentGradientJvp<T>& j, int64_t parts, const InParallel& in_parallel,
                       Pages& pages) {
  return {j.network,
          j.batch,
          true,
          j.theta,
          j.theta_tangent,
          j.images_tangent,
          j.target_tangent,
          j.directional,
          j.grad_theta,
          j.grad_images,
          j.grad_target,
          const_cast<T*>(j.tape),
          parts,
          &in_parallel,
          &pages};
}

}  // namespace

template <class T>
void student_gradient(const StudentGradient<T>& call, int64_t parts, const InParallel& in_parallel,
                      Pages& pages) {
  run(call_of(call, std::clamp<int64_t>(parts, 1, call.batch.size), in_parallel, pages));
}

template <class T>
void student_gradient_jvp(const StudentGradientJvp<T>& call, int64_t parts,
                          const InParallel& in_parallel, Pages& pages) {
  run(call_of(call, std::clamp<int64_t>(parts, 1, call.batch.size), in_parallel, pages));
}

template <>
int64_t student_tape_size<float>(const Network& network, int64_t batch) {
  TM_DISPATCH_ISA(tape_size<float>, network, batch);
}
template <>
int64_t student_tape_size<double>(const Network& network, int64_t batch) {
  return portable::tape_size<double>(network, batch);
}

template void student_gradient(const StudentGradient<float>&, int64_t, const InParallel&, Pages&);
template void student_gradient(const StudentGradient<double>&, int64_t, const InParallel&, Pages&);
template void student_gradient_jvp(const StudentGradientJvp<float>&, int64_t, const InParallel&,
                                   Pages&);
template void student_gradient_jvp(const StudentGradientJvp<double>&, int64_t, const InParallel&,
                                   Pages&);

std::vector<std::pair<std::string, double>> Profile::stop() {
  static const char* const names[] = {"pack",
                                      "clear",
                                      "read",
                                      "transform",
                                      "product",
                                      "transform back",
                                      "norm",
                                      "classify",
                                      "norm backward",
                                      "transform gradient",
                                      "weight product",
                                      "input product",
                                      "transform gradient back",
                                      "write",
                                      "wait",
                                      "unpack"};
  static_assert(std::size(names) == static_cast<size_t>(Pass::kCount));
  on_ = false;
  std::vector<std::pair<std::string, double>> result;
  for (int64_t layer = 0; layer < kProfiledLayers; ++layer) {
    for (int pass = 0; pass < static_cast<int>(Pass::kCount); ++pass) {
      const double seconds = seconds_[layer][pass];
      if (seconds > 0) result.emplace_back(names[pass] + ("." + std::to_string(layer)), seconds);
    }
  }
  return result;
}

void advise_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  // Only advice: where it is refused, small pages serve as well.
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

void* Pages::reserve(int64_t bytes) {
  constexpr int64_t huge_page = int64_t{2} << 20;
  if (bytes <= bytes_) return data_;
  release();
  const int64_t size = (bytes + huge_page - 1) / huge_page * huge_page;
  data_ = std::aligned_alloc(huge_page, size);
  if (data_ == nullptr) throw std::bad_alloc();
  advise_huge_pages(data_, size);
  bytes_ = size;
  return data_;
}

void Pages::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace trajmatch::cpu

namespace trajmatch {

void start_profile() { cpu::profile().start(); }
std::vector<std::pair<std::string, double>> stop_profile() { return cpu::profile().stop(); }

}  // namespace trajmatch
