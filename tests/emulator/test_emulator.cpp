// The emulator's own test: sound kernels give the right result under every schedule, and each kind
// of unsound kernel is caught.
//
//   test_emulator               all cases
//   test_emulator fault NAME    runs one unsound kernel that only a sanitizer can catch

#include <array>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "runtime/options.h"
#include "testing.h"

namespace {

using testing::expect;
using testing::expect_contains;
using testing::message_of;

constexpr unsigned kFullMask = 0xffffffffu;

// Sum of x over a block of at most 1024 threads, in three steps, two of which need a barrier or a
// whole warp. Faults leave one of them out.
enum class Fault { kNone, kMissingBarrier, kShortReduction, kHalfMask };

template <Fault fault>
__global__ void block_sum_kernel(const float* x, float* sum, int count) {
  TM_SHARED(float, partial, 32);
  const unsigned thread = threadIdx.x;
  float value = static_cast<int>(thread) < count ? x[thread] : 0.0f;
  const unsigned shortest = fault == Fault::kShortReduction ? 2 : 1;
  for (unsigned step = 16; step >= shortest; step /= 2) {
    value += __shfl_xor_sync(kFullMask, value, step);
  }
  if (thread % 32 == 0) partial[thread / 32] = value;
  if (fault != Fault::kMissingBarrier) __syncthreads();
  if (thread >= 32) return;
  value = thread < blockDim.x / 32 ? partial[thread] : 0.0f;
  if (fault == Fault::kHalfMask && thread >= 16) return;
  for (unsigned step = 16; step > 0; step /= 2) value += __shfl_down_sync(kFullMask, value, step);
  if (thread == 0) *sum = value;
}

template <Fault fault>
float block_sum(const std::vector<float>& x) {
  float sum = -1.0f;
  TM_LAUNCH(block_sum_kernel<fault>, 1, 256, 0, nullptr, x.data(), &sum,
            static_cast<int>(x.size()));
  return sum;
}

// Transposes through a tile of dynamic shared memory, on a two-dimensional grid of blocks.
template <bool synchronise>
__global__ void transpose_kernel(const float* in, float* out, int rows, int columns) {
  TM_DYNAMIC_SHARED(float, tile);
  const int column = static_cast<int>(blockIdx.x * 16 + threadIdx.x);
  const int row = static_cast<int>(blockIdx.y * 16 + threadIdx.y);
  if (column < columns && row < rows) {
    tile[threadIdx.y * 17 + threadIdx.x] = in[row * columns + column];
  }
  if (synchronise) __syncthreads();
  const int out_column = static_cast<int>(blockIdx.y * 16 + threadIdx.x);
  const int out_row = static_cast<int>(blockIdx.x * 16 + threadIdx.y);
  if (out_column < rows && out_row < columns) {
    out[out_row * rows + out_column] = tile[threadIdx.x * 17 + threadIdx.y];
  }
}

template <bool synchronise>
bool transposes() {
  constexpr int kRows = 37;
  constexpr int kColumns = 53;
  std::vector<float> in(kRows * kColumns);
  std::vector<float> out(in.size(), -1.0f);
  std::iota(in.begin(), in.end(), 0.0f);
  TM_LAUNCH(transpose_kernel<synchronise>, dim3(4, 3), dim3(16, 16), 16 * 17 * sizeof(float),
            nullptr, in.data(), out.data(), kRows, kColumns);
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      if (out[column * kRows + row] != in[row * kColumns + column]) return false;
    }
  }
  return true;
}

// Every lane writes what its neighbour reads, with or without __syncwarp between.
template <bool synchronise>
__global__ void neighbour_kernel(int* out) {
  TM_SHARED(int, values, 32);
  values[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (synchronise) __syncwarp();
  out[threadIdx.x] = values[(threadIdx.x + 1) % 32];
}

template <bool synchronise>
bool reads_neighbours() {
  std::array<int, 32> out{};
  TM_LAUNCH(neighbour_kernel<synchronise>, 1, 32, 0, nullptr, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    if (out[static_cast<size_t>(lane)] != (lane + 1) % 32) return false;
  }
  return true;
}

// Lanes of two masks exchange at the same time; a partial warp has lanes that do not exist.
__global__ void masks_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane % 2 == 0) {
    out[lane] = __shfl_sync(0x55555555u, lane, 4);
  } else {
    out[lane] = __shfl_sync(0xaaaaaaaau, 100 + lane, 5);
  }
}

__global__ void votes_kernel(unsigned* out) {
  out[threadIdx.x] = __ballot_sync(kFullMask, threadIdx.x % 3 == 0);
}

__global__ void undefined_source_kernel(float* out) {
  out[threadIdx.x] = __shfl_down_sync(kFullMask, 1.0f, 8);
}

__global__ void unwritten_shared_kernel(float* out) {
  TM_SHARED(float, values, 4);
  out[0] = values[3];
}

__global__ void divergent_barrier_kernel(int* reached) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    __syncwarp(threadIdx.x < 64 ? 0xffffff00u : kFullMask);
    __syncthreads();
  }
  *reached = 1;
}

__global__ void early_exit_kernel(int* reached) {
  if (threadIdx.x >= 48) return;
  __syncthreads();
  *reached = 1;
}

__global__ void wrong_mask_kernel(int* reached) {
  __syncwarp(0x0000ffffu);
  *reached = 1;
}

__global__ void too_much_shared_kernel(double* out) {
  TM_SHARED(double, first, 4096);
  TM_SHARED(double, second, 2049);
  out[0] = first[0] + second[0];
}

__global__ void index_kernel(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * 24 + thread] += static_cast<int>(block * 24 + thread);
}

// Blocks must not depend on each other; this one reads what the block before it wrote.
__global__ void dependent_blocks_kernel(int* out) {
  out[blockIdx.x] = blockIdx.x == 0 ? 1 : out[blockIdx.x - 1] + 1;
}

__global__ void scale_kernel(float* x, int count, int beyond) {
  const int index = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (index < count + beyond) x[index] *= 2.0f;
}

__global__ void shared_overflow_kernel(float* out) {
  TM_SHARED(float, values, 33);
  values[threadIdx.x + blockDim.x - 30] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void misaligned_kernel(const float* x, float4* out) {
  *out = *reinterpret_cast<const float4*>(x + 1);
}

__global__ void last_block_wins_kernel(int* out) { *out = static_cast<int>(blockIdx.x); }

// The report on a kernel whose threads wait for each other.
std::string stuck(void (*kernel)(int*), unsigned threads) {
  int reached = 0;
  const std::string text = message_of([&] { TM_LAUNCH(kernel, 1, threads, 0, nullptr, &reached); });
  expect(reached == 0, "a thread passed the synchronisation");
  return text;
}

void under_schedule(emulator::Schedule schedule, const std::function<void()>& run) {
  const emulator::Options before = emulator::options();
  emulator::options().schedule = schedule;
  run();
  emulator::options() = before;
}

// Whether some schedule makes `sound` false.
bool caught(const std::function<bool()>& sound) {
  bool failed = false;
  for (int schedule = 0; schedule < 4; ++schedule) {
    under_schedule(static_cast<emulator::Schedule>(schedule), [&] { failed |= !sound(); });
  }
  return failed;
}

// Doubles x on the main stream, then adds it to a sum on a side stream. Faults leave out a wait.
enum class Wait { kBoth, kNoFork, kNoJoin };

__global__ void add_kernel(const float* x, float* sum) {
  if (threadIdx.x == 0) *sum += *x;
}

template <Wait wait>
bool adds_beside() {
  float x = 1.0f, sum = 0.0f;
  cudaStream_t side = nullptr;
  cudaEvent_t event = nullptr;
  cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  TM_LAUNCH(scale_kernel, 1, 32, 0, nullptr, &x, 1, 0);
  if (wait != Wait::kNoFork) {
    cudaEventRecord(event, nullptr);
    cudaStreamWaitEvent(side, event, 0);
  }
  TM_LAUNCH(add_kernel, 1, 32, 0, side, &x, &sum);
  cudaEventRecord(event, side);
  if (wait != Wait::kNoJoin) cudaStreamWaitEvent(nullptr, event, 0);
  const float found = sum;
  cudaStreamWaitEvent(nullptr, event, 0);  // nothing may wait when its memory is gone
  return found == 2.0f;
}

std::vector<testing::Case> sound_kernels() {
  const std::vector<float> ones(200, 1.0f);
  return {
      {"block sum", [=] { expect(block_sum<Fault::kNone>(ones) == 200.0f, "wrong sum"); }},
      {"transpose", [] { expect(transposes<true>(), "wrong transpose"); }},
      {"neighbours in a warp", [] { expect(reads_neighbours<true>(), "wrong neighbour"); }},
      {"two masks at once",
       [] {
         std::array<int, 20> out{};
         TM_LAUNCH(masks_kernel, 1, 20, 0, nullptr, out.data());
         for (size_t lane = 0; lane < out.size(); ++lane) {
           expect(out[lane] == (lane % 2 == 0 ? 4 : 105), "wrong lane was read");
         }
       }},
      {"ballot names only lanes that exist",
       [] {
         std::array<unsigned, 7> out{};
         TM_LAUNCH(votes_kernel, 1, 7, 0, nullptr, out.data());
         for (const unsigned ballot : out) expect(ballot == 0b1001001u, "wrong ballot");
       }},
      {"indices of threads and blocks",
       [] {
         std::vector<int> out(2 * 3 * 4 * 24, 0);
         TM_LAUNCH(index_kernel, dim3(2, 3, 4), dim3(3, 4, 2), 0, nullptr, out.data());
         for (size_t i = 0; i < out.size(); ++i) {
           expect(out[i] == static_cast<int>(i), "an element was visited not exactly once");
         }
       }},
      {"side stream",
       [] { expect(!caught(adds_beside<Wait::kBoth>), "a schedule gave the wrong sum"); }},
      {"repeated launches",
       [] {
         std::vector<float> x(1000, 1.0f);
         for (int launch = 0; launch < 3; ++launch) {
           TM_LAUNCH(scale_kernel, 4, 256, 0, nullptr, x.data(), 1000, 0);
         }
         expect(x.front() == 8.0f && x.back() == 8.0f, "wrong product");
       }},
  };
}

std::vector<testing::Case> unsound_kernels() {
  const std::vector<float> ones(200, 1.0f);
  return {
      {"missing barrier between warps",
       [=] {
         expect(caught([&] { return block_sum<Fault::kMissingBarrier>(ones) == 200.0f; }),
                "every schedule gave the right sum");
       }},
      {"reduction one step short",
       [=] {
         expect(caught([&] { return block_sum<Fault::kShortReduction>(ones) == 200.0f; }),
                "every schedule gave the right sum");
       }},
      {"missing barrier around a tile",
       [] { expect(caught(transposes<false>), "every schedule gave the right transpose"); }},
      {"no wait for a side stream",
       [] { expect(caught(adds_beside<Wait::kNoJoin>), "every schedule gave the right sum"); }},
      {"side stream that does not wait",
       [] {
         expect_contains(message_of([] { adds_beside<Wait::kNoFork>(); }),
                         "add_kernel does not wait for all launches on the main stream");
       }},
      {"missing __syncwarp",
       [] { expect(caught(reads_neighbours<false>), "every schedule gave the right values"); }},
      {"lanes that left a full-mask shuffle",
       [=] {
         const std::string text = message_of([&] { block_sum<Fault::kHalfMask>(ones); });
         expect_contains(text, "deadlock in block (0,0,0) of block_sum_kernel<fault>");
         expect_contains(text, "threads 0 to 15 at __shfl_down_sync (test_emulator.cpp:");
         expect_contains(text, "threads 16 to 255 exited");
       }},
      {"divergent barrier",
       [] {
         const std::string text = stuck(divergent_barrier_kernel, 96);
         expect_contains(text, "threads 0 to 39 at __syncthreads (test_emulator.cpp:");
         expect_contains(text, "threads 40 to 95 at __syncthreads (test_emulator.cpp:");
       }},
      {"barrier after some threads exited",
       [] {
         const std::string text = stuck(early_exit_kernel, 64);
         expect_contains(text, "threads 48 to 63 exited");
       }},
      {"mask without the calling lane",
       [] {
         const std::string text = stuck(wrong_mask_kernel, 32);
         expect_contains(text, "with a mask that does not name it");
       }},
      {"a launch after a deadlock",
       [=] {
         stuck(early_exit_kernel, 256);
         expect(block_sum<Fault::kNone>(ones) == 200.0f, "wrong sum");
       }},
      {"dependence between blocks",
       [] {
         expect(caught([] {
                  std::array<int, 8> out{};
                  TM_LAUNCH(dependent_blocks_kernel, 8, 1, 0, nullptr, out.data());
                  return out[7] == 8;
                }),
                "every schedule ran the blocks in ascending order");
       }},
      {"shuffle from a lane that does not exist is NaN",
       [] {
         std::array<float, 20> out{};
         TM_LAUNCH(undefined_source_kernel, 1, 20, 0, nullptr, out.data());
         expect(out[11] == 1.0f && std::isnan(out[12]), "undefined value looks defined");
       }},
      {"unwritten shared memory is NaN",
       [] {
         float out = 0.0f;
         TM_LAUNCH(unwritten_shared_kernel, 1, 1, 0, nullptr, &out);
         expect(std::isnan(out), "unwritten value looks written");
       }},
      {"too much static shared memory",
       [] {
         double out = 0.0;
         const std::string text =
             message_of([&] { TM_LAUNCH(too_much_shared_kernel, 1, 1, 0, nullptr, &out); });
         expect_contains(text, "49160 bytes, more than 49152");
       }},
      {"launches that CUDA refuses",
       [] {
         std::vector<float> x(1);
         const auto message = [&](dim3 grid, dim3 block, size_t shared) {
           return message_of(
               [&] { TM_LAUNCH(scale_kernel, grid, block, shared, nullptr, x.data(), 0, 0); });
         };
         const std::string refused = "the launch of scale_kernel failed: invalid";
         expect_contains(message(1, 1025, 0), refused + " configuration argument");
         expect_contains(message(0, 1, 0), refused + " configuration argument");
         expect_contains(message(dim3(1, 65536), 1, 0), refused + " configuration argument");
         expect_contains(message(1, 1, 48 * 1024 + 1), refused + " argument");
         expect(cudaGetLastError() == cudaSuccess, "the error was not forgotten");
         const auto uncompiled = [] {
           trajmatch::cuda::check(cudaErrorNoKernelImageForDevice, "the launch of kernel");
         };
         expect_contains(message_of(uncompiled), "on the device; `trajmatch doctor` prints how");
       }},
      {"dynamic shared memory beyond the default",
       [] {
         float x = 1.0f;
         expect(cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     99 * 1024) == cudaSuccess,
                "99 KiB were refused");
         TM_LAUNCH(scale_kernel, 1, 1, 99 * 1024, nullptr, &x, 1, 0);
         expect(x == 2.0f, "the kernel did not run");
         expect(cudaFuncSetAttribute(scale_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     99 * 1024 + 1) == cudaErrorInvalidValue,
                "more than 99 KiB were granted");
         cudaGetLastError();
       }},
  };
}

int run_fault(const std::string& name) {
  const std::unique_ptr<float[]> x(new float[200]());
  const std::unique_ptr<float4[]> wide(new float4[1]());
  int winner = 0;
  if (name == "none") {
    TM_LAUNCH(scale_kernel, 1, 256, 0, nullptr, x.get(), 200, 0);
  } else if (name == "global_overflow") {
    TM_LAUNCH(scale_kernel, 1, 256, 0, nullptr, x.get(), 200, 1);
  } else if (name == "shared_overflow") {
    TM_LAUNCH(shared_overflow_kernel, 1, 32, 0, nullptr, x.get());
  } else if (name == "misaligned") {
    TM_LAUNCH(misaligned_kernel, 1, 1, 0, nullptr, x.get(), wide.get());
  } else if (name == "race_in_block") {
    block_sum<Fault::kMissingBarrier>(std::vector<float>(200, 1.0f));
  } else if (name == "race_between_blocks") {
    TM_LAUNCH(last_block_wins_kernel, 4, 1, 0, nullptr, &winner);
  } else {
    std::fprintf(stderr, "unknown fault %s\n", name.c_str());
    return 2;
  }
  std::printf("fault %s went unnoticed\n", name.c_str());
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 3 && std::string(arguments[1]) == "fault") return run_fault(arguments[2]);
  std::vector<testing::Case> cases = sound_kernels();
  if (emulator::kReportsDeadlocks) {
    for (const testing::Case& one : unsound_kernels()) cases.push_back(one);
  }
  return testing::run_all(cases);
}
