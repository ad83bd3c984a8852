#include "core/student.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory_resource>
#include <optional>
#include <type_traits>
#include <vector>

#include "core/convolution.h"
#include "core/soft_cross_entropy.h"
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
                       EngineMemory& memory) {
  return {g.network,     g.batch, false,  g.theta,      nullptr,
          nullptr,       nullptr, g.loss, g.grad_theta, g.grad_images,
          g.grad_target, g.tape,  parts,  &in_parallel, &memory};
}

template <class T>
StudentCall<T> call_of(const StudentGradientJvp<T>& j, int64_t parts, const InParallel& in_parallel,
                       EngineMemory& memory) {
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
          &memory};
}

}  // namespace

template <class T>
void student_gradient(const StudentGradient<T>& call, int64_t parts, const InParallel& in_parallel,
                      EngineMemory& memory) {
  run(call_of(call, std::clamp<int64_t>(parts, 1, call.batch.size), in_parallel, memory));
}

template <class T>
void student_gradient_jvp(const StudentGradientJvp<T>& call, int64_t parts,
                          const InParallel& in_parallel, EngineMemory& memory) {
  run(call_of(call, std::clamp<int64_t>(parts, 1, call.batch.size), in_parallel, memory));
}

template <>
void winograd_convolution(const WinogradConvolution<float>& call, int64_t parts,
                          const InParallel& in_parallel, EngineMemory& memory) {
  TM_DISPATCH_ISA(run_convolution, call, parts, in_parallel, memory);
}
template <>
void winograd_convolution(const WinogradConvolution<double>& call, int64_t parts,
                          const InParallel& in_parallel, EngineMemory& memory) {
  portable::run_convolution(call, parts, in_parallel, memory);
}

template <>
int64_t student_tape_size<float>(const Network& network, int64_t batch) {
  TM_DISPATCH_ISA(tape_size<float>, network, batch);
}
template <>
int64_t student_tape_size<double>(const Network& network, int64_t batch) {
  return portable::tape_size<double>(network, batch);
}

template void student_gradient(const StudentGradient<float>&, int64_t, const InParallel&,
                               EngineMemory&);
template void student_gradient(const StudentGradient<double>&, int64_t, const InParallel&,
                               EngineMemory&);
template void student_gradient_jvp(const StudentGradientJvp<float>&, int64_t, const InParallel&,
                                   EngineMemory&);
template void student_gradient_jvp(const StudentGradientJvp<double>&, int64_t, const InParallel&,
                                   EngineMemory&);

}  // namespace trajmatch::cpu
