// The student engine, compiled once per instruction set. No include guard: see cpu/for_each_isa.h.

namespace trajmatch::cpu::TM_ISA {
namespace {

// clang-format off: each file builds on those before it
#include "cpu/pack.h"
#include "cpu/student/planes.h"
#include "cpu/student/product.h"
#include "cpu/student/plan.h"
#include "cpu/student/winograd_transforms.h"
#include "cpu/student/tiles.h"
#include "cpu/student/weights.h"
#include "cpu/student/pixels.h"
#include "cpu/student/classifier.h"
#include "cpu/student/buffers.h"
#include "cpu/student/layer_passes.h"
#include "cpu/student/convolution.h"
#include "cpu/student/walk.h"
// clang-format on

template <class T>
void run_walk(const StudentCall<T>& call) {
  Walk<T>(call).run();
}

template <class T>
void run_convolution(const WinogradConvolution<T>& call, int64_t parts,
                     const InParallel& in_parallel, EngineMemory& memory) {
  ConvolutionWalk<T>(call, parts, in_parallel, memory).run();
}

template <class T>
int64_t tape_size(const Network& network, int64_t batch) {
  Memory<T> counting(nullptr, std::pmr::get_default_resource());
  Tape<T>(WalkPlan<T>(network), batch, counting);
  return counting.used();
}

}  // namespace
}  // namespace trajmatch::cpu::TM_ISA
