// Every CUDA kernel on the CPU emulator, against the CPU loops.
//
//   test_kernels [FILTER...]   the cases whose name contains one of the filters; all without any
//
// Every case runs under all four schedules of warps and blocks, or under the one that
// TRAJMATCH_EMULATOR_ORDER (0 to 3) names.

#include <string>

#include "kernels/check.h"

int main(int count, char** arguments) {
  std::vector<testing::Case> cases;
  for (const auto& family :
       {kernels::param_distance_cases, kernels::sgd_step_cases, kernels::batch_rows_cases,
        kernels::dsa_cases, kernels::soft_cross_entropy_cases, kernels::norm_act_pool_cases,
        kernels::first_layer_cases, kernels::fused_convolution_cases,
        kernels::half_operand_cases}) {
    for (const testing::Case& one : family()) cases.push_back(one);
  }
  return testing::run_all(cases, std::vector<std::string>(arguments + 1, arguments + count));
}
