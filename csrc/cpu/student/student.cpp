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
#include "cpu/student/norm.h"
#include "cpu/student/profile.h"

#define TM_KERNELS "cpu/student/walk_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

// float64 serves checks only, so it runs the portable kernels on every processor.

template <>
void run_student(const StudentCall<float>& call) {
  TM_DISPATCH_ISA(run_walk, call);
}
template <>
void run_student(const StudentCall<double>& call) {
  portable::run_walk(call);
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

}  // namespace trajmatch::cpu
