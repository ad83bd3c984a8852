// Every CUDA kernel on the CPU emulator, against the CPU loops.
//
//   test_kernels [FILTER...]     the cases whose name contains one of the filters; all without any
//   test_kernels --share I N     every Nth case from case I on, so that N processes run all
//   test_kernels --pairs I N     the same in half the time
//
// Every case runs under all four schedules of warps and blocks, under two that change from case to
// case (--pairs), or under the one that TRAJMATCH_EMULATOR_ORDER (0 to 3) names.

#include <string>

#include "kernels/check.h"

int main(int count, char** arguments) {
  std::vector<testing::Case> cases;
  for (const auto& family :
       {kernels::param_distance_cases, kernels::sgd_step_cases, kernels::optimiser_step_cases,
        kernels::batch_rows_cases, kernels::classifier_cases, kernels::dsa_cases,
        kernels::soft_cross_entropy_cases, kernels::norm_act_pool_cases, kernels::first_layer_cases,
        kernels::fused_convolution_cases, kernels::half_operand_cases, kernels::share_sums_cases}) {
    for (const testing::Case& one : family()) cases.push_back(one);
  }
  std::vector<std::string> filters(arguments + 1, arguments + count);
  testing::Share share;
  if (filters.size() == 3 && (filters[0] == "--share" || filters[0] == "--pairs")) {
    share = {std::stoul(filters[1]), std::stoul(filters[2])};
    emulator::options().pairs = filters[0] == "--pairs";
    filters.clear();
  }
  return testing::run_all(cases, filters, share);
}
