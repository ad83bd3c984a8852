#include "cpu/student/norm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define TM_KERNELS "cpu/student/norm_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu::portable {

// float64 serves checks only, so it runs the portable kernels on every processor.
void norm_forward(const NormPass<double>& pass) { run_norm<Forward>(pass); }
void norm_tangent(const NormPass<double>& pass) { run_norm<Tangent>(pass); }
void norm_backward(const NormPass<double>& pass) { run_norm<Backward>(pass); }
void norm_backward_tangent(const NormPass<double>& pass) { run_norm<BackwardTangent>(pass); }

}  // namespace trajmatch::cpu::portable
