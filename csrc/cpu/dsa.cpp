#include "core/dsa.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"

#define TM_KERNELS "cpu/dsa_kernels.h"
#include "cpu/for_each_isa.h"

namespace trajmatch::cpu {

template <>
void dsa(const Dsa<float>& params, int64_t begin, int64_t end) {
  TM_DISPATCH_ISA(dsa, params, begin, end);
}
// float64 serves checks only, so it runs the portable kernels on every processor.
template <>
void dsa(const Dsa<double>& params, int64_t begin, int64_t end) {
  portable::dsa(params, begin, end);
}

}  // namespace trajmatch::cpu
