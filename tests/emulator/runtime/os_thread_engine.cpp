// The engine that runs every CUDA thread as an OS thread, for ThreadSanitizer. Nothing orders two
// threads but what orders them on a GPU, neither within a block nor between the blocks of a launch,
// so that a race is reported with both its lines. Deadlocks hang here: run the fibers first.
#include "runtime/engine.h"

#ifdef TRAJMATCH_EMULATOR_OS_THREADS

#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace emulator {
namespace {

// Blocks run together until they have so many threads; races between them need at least two.
constexpr unsigned kThreadsTogether = 1024;

// A barrier that orders its own threads and no others: std::barrier waits on counters that all
// barriers of the program share, and so hides races between threads of different ones.
class Barrier {
 public:
  explicit Barrier(unsigned threads) : threads_(threads) {}

  void arrive_and_wait() {
    std::unique_lock hold(lock_);
    const unsigned phase = phase_;
    if (++arrived_ == threads_) {
      arrived_ = 0;
      ++phase_;
      all_arrived_.notify_all();
    } else {
      all_arrived_.wait(hold, [&] { return phase_ != phase; });
    }
  }

 private:
  const unsigned threads_;
  std::mutex lock_;
  std::condition_variable all_arrived_;
  unsigned arrived_ = 0;
  unsigned phase_ = 0;
};

// The lanes of one mask meet here: once when all have put their payloads down, once when all have
// picked theirs up.
struct Meeting {
  explicit Meeting(unsigned lanes) : barrier(lanes) {}
  Barrier barrier;
  std::array<uint64_t, kWarpSize> payloads{};
};

struct Warp {
  // The lock orders lanes that meet in different masks more than a GPU would; others not at all,
  // since they wait for each other anyway.
  std::mutex lock;
  std::map<unsigned, Meeting> meetings;  // by mask
};

struct OsBlock : Block {
  OsBlock(const Launch& of, size_t number) : Block(of), barrier(of.threads()), warps(num_warps()) {
    start(number);
  }

  unsigned existing(unsigned warp) const {
    const unsigned lanes = warp_end(warp) - warp_begin(warp);
    return lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
  }

  Barrier barrier;
  std::vector<Warp> warps;
};

thread_local Thread* running = nullptr;

OsBlock& block_of(const Thread& thread) { return static_cast<OsBlock&>(*thread.block); }

void run_thread(OsBlock& block, unsigned rank) {
  const dim3& size = block.launch.block;
  Thread thread;
  thread.rank = rank;
  thread.index = {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
  thread.block = &block;
  running = &thread;
  block.launch.body();
  running = nullptr;
}

}  // namespace

Thread& current() { return *running; }

void run(const Launch& launch) {
  const size_t count = launch.blocks();
  const size_t together = std::max(2u, kThreadsTogether / launch.threads());
  for (size_t first = 0; first < count; first += together) {
    std::vector<std::unique_ptr<OsBlock>> blocks;
    for (size_t number = first; number < std::min(count, first + together); ++number) {
      blocks.push_back(std::make_unique<OsBlock>(launch, number));
    }
    std::vector<std::jthread> threads;
    for (const auto& block : blocks) {
      for (unsigned rank = 0; rank < block->num_threads(); ++rank) {
        threads.emplace_back([&block, rank] { run_thread(*block, rank); });
      }
    }
  }
}

void sync_block(const Site&) { block_of(*running).barrier.arrive_and_wait(); }

Collected collect(unsigned mask, uint64_t payload, unsigned source, const Site&) {
  OsBlock& block = block_of(*running);
  const unsigned participants = mask & block.existing(running->warp());
  Warp& warp = block.warps[running->warp()];
  Meeting* meeting = nullptr;
  {
    const std::lock_guard hold(warp.lock);
    meeting =
        &warp.meetings.try_emplace(participants, __builtin_popcount(participants)).first->second;
  }
  meeting->payloads[running->lane()] = payload;
  meeting->barrier.arrive_and_wait();
  const bool defined = source < kWarpSize && (participants >> source & 1);
  Collected collected{defined ? meeting->payloads[source] : kUndefined, 0};
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((participants >> lane & 1) && meeting->payloads[lane] != 0) collected.ballot |= 1u << lane;
  }
  meeting->barrier.arrive_and_wait();
  return collected;
}

}  // namespace emulator

#endif  // TRAJMATCH_EMULATOR_OS_THREADS
