// The engine that runs the threads of a block as fibers of one OS thread.
#include "runtime/engine.h"

#ifndef TRAJMATCH_EMULATOR_OS_THREADS

#include <algorithm>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "runtime/fiber.h"
#include "runtime/options.h"

namespace emulator {
namespace {

enum class State { kReady, kAtBarrier, kInCollective, kExited };

struct FiberThread : Thread {
  Fiber fiber;
  State state = State::kExited;
  Site site;
  // Of the collective operation that it waits in.
  unsigned mask = 0;
  uint64_t payload = 0;
  unsigned source = 0;
  Collected collected{};
};

thread_local FiberThread* running = nullptr;
thread_local const std::function<void()>* running_body = nullptr;
thread_local std::exception_ptr failure;

void run_thread(void* argument) {
  FiberThread* thread = static_cast<FiberThread*>(argument);
  try {
    (*running_body)();
  } catch (...) {
    failure = std::current_exception();
  }
  thread->state = State::kExited;
}

// Stacks are expensive to map: threads are kept from block to block and launch to launch.
FiberThread& pooled_thread(unsigned rank) {
  static thread_local std::vector<std::unique_ptr<FiberThread>> pool;
  while (pool.size() <= rank) pool.push_back(std::make_unique<FiberThread>());
  return *pool[rank];
}

// Runs the blocks of a launch one after another.
class Scheduler {
 public:
  explicit Scheduler(const Launch& launch) : block_(launch) {
    const dim3& size = launch.block;
    for (unsigned rank = 0; rank < launch.threads(); ++rank) {
      FiberThread& thread = pooled_thread(rank);
      thread.rank = rank;
      thread.index = {rank % size.x, rank / size.x % size.y, rank / (size.x * size.y)};
      thread.block = &block_;
      threads_.push_back(&thread);
    }
    running_body = &launch.body;
  }

  void run_block(size_t number) {
    block_.start(number);
    random_.seed(options().seed + static_cast<unsigned>(number));
    for (FiberThread* thread : threads_) {
      thread->state = State::kReady;
      thread->fiber.prepare(run_thread, thread);
    }
    warp_ready_.assign(block_.num_warps(), true);
    exited_ = 0;
    last_warp_ = ~0u;
    while (exited_ < threads_.size()) {
      const unsigned warp = next_warp();
      if (warp < block_.num_warps()) {
        run_warp(warp);
        release_collectives(warp);
      } else {
        release_barrier();
      }
    }
  }

 private:
  // A warp with a thread that can run, or num_warps() where there is none.
  unsigned next_warp() {
    const unsigned count = block_.num_warps();
    unsigned first = 0;
    switch (options().schedule) {
      case Schedule::kRoundRobin:
        first = last_warp_ + 1;
        break;
      case Schedule::kLowestFirst:
        break;
      case Schedule::kHighestFirst:
        for (unsigned warp = count; warp-- > 0;) {
          if (warp_ready_[warp]) return warp;
        }
        return count;
      case Schedule::kRandom:
        first = random_() % count;
        break;
    }
    for (unsigned step = 0; step < count; ++step) {
      const unsigned warp = (first + step) % count;
      if (warp_ready_[warp]) return last_warp_ = warp;
    }
    return count;
  }

  // Every ready lane runs to its next synchronisation.
  void run_warp(unsigned warp) {
    lanes_.resize(block_.warp_end(warp) - block_.warp_begin(warp));
    std::iota(lanes_.begin(), lanes_.end(), block_.warp_begin(warp));
    if (options().schedule == Schedule::kHighestFirst) std::reverse(lanes_.begin(), lanes_.end());
    if (options().schedule == Schedule::kRandom) {
      std::shuffle(lanes_.begin(), lanes_.end(), random_);
    }
    for (const unsigned rank : lanes_) {
      FiberThread& thread = *threads_[rank];
      if (thread.state != State::kReady) continue;
      running = &thread;
      thread.fiber.resume();
      running = nullptr;
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      if (thread.state == State::kExited) ++exited_;
    }
    warp_ready_[warp] = false;
  }

  // Lanes that wait in the collective operation of `leader`, as a mask.
  unsigned arrived_with(const FiberThread& leader) const {
    unsigned arrived = 0;
    for (unsigned rank = block_.warp_begin(leader.warp()); rank < block_.warp_end(leader.warp());
         ++rank) {
      const FiberThread& other = *threads_[rank];
      if (other.state == State::kInCollective && other.mask == leader.mask &&
          other.site == leader.site) {
        arrived |= 1u << other.lane();
      }
    }
    return arrived;
  }

  void release_collectives(unsigned warp) {
    const unsigned begin = block_.warp_begin(warp);
    const unsigned lanes = block_.warp_end(warp) - begin;
    const unsigned existing = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    for (unsigned rank = begin; rank < begin + lanes; ++rank) {
      FiberThread& leader = *threads_[rank];
      if (leader.state != State::kInCollective) continue;
      const unsigned wanted = leader.mask & existing;
      if (arrived_with(leader) != wanted) continue;
      release(begin, wanted);
      warp_ready_[warp] = true;
    }
  }

  void release(unsigned begin, unsigned participants) {
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if ((participants >> lane & 1) && threads_[begin + lane]->payload != 0) ballot |= 1u << lane;
    }
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(participants >> lane & 1)) continue;
      FiberThread& thread = *threads_[begin + lane];
      const bool defined = thread.source < kWarpSize && (participants >> thread.source & 1);
      thread.collected = {defined ? threads_[begin + thread.source]->payload : kUndefined, ballot};
      thread.state = State::kReady;
    }
  }

  // No thread can run: either all have arrived at one barrier, or the block is stuck.
  void release_barrier() {
    for (const FiberThread* thread : threads_) {
      if (thread->state != State::kAtBarrier || !(thread->site == threads_[0]->site))
        report_stuck();
    }
    for (FiberThread* thread : threads_) thread->state = State::kReady;
    warp_ready_.assign(block_.num_warps(), true);
  }

  [[noreturn]] void report_stuck() const {
    std::string text = "deadlock in " + block_.name() + ":";
    for (unsigned first = 0; first < threads_.size();) {
      unsigned last = first;
      while (last + 1 < threads_.size() && describe(last + 1) == describe(first)) ++last;
      text += (first == 0 ? " thread" : "; thread") + std::string(first == last ? " " : "s ") +
              std::to_string(first) + (first == last ? "" : " to " + std::to_string(last)) + " " +
              describe(first);
      first = last + 1;
    }
    throw std::runtime_error(text);
  }

  std::string describe(unsigned rank) const {
    const FiberThread& thread = *threads_[rank];
    if (thread.state == State::kExited) return "exited";
    return "at " + thread.site.text();
  }

  Block block_;
  std::mt19937 random_;
  std::vector<FiberThread*> threads_;
  std::vector<bool> warp_ready_;
  std::vector<unsigned> lanes_;
  size_t exited_ = 0;
  unsigned last_warp_ = ~0u;
};

}  // namespace

Thread& current() { return *running; }

void run(const Launch& launch) {
  std::vector<size_t> order(launch.blocks());
  std::iota(order.begin(), order.end(), size_t{0});
  if (options().schedule == Schedule::kHighestFirst) std::reverse(order.begin(), order.end());
  if (options().schedule == Schedule::kRandom) {
    std::shuffle(order.begin(), order.end(), std::mt19937(options().seed));
  }
  Scheduler scheduler(launch);
  for (const size_t number : order) scheduler.run_block(number);
}

void sync_block(const Site& site) {
  running->state = State::kAtBarrier;
  running->site = site;
  running->fiber.suspend();
}

Collected collect(unsigned mask, uint64_t payload, unsigned source, const Site& site) {
  FiberThread& thread = *running;
  if (!(mask >> thread.lane() & 1)) {
    throw std::runtime_error("thread " + std::to_string(thread.rank) + " in " +
                             thread.block->name() + " calls " + site.text() +
                             " with a mask that does not name it");
  }
  thread.state = State::kInCollective;
  thread.site = site;
  thread.mask = mask;
  thread.payload = payload;
  thread.source = source;
  thread.fiber.suspend();
  return thread.collected;
}

}  // namespace emulator

#endif  // TRAJMATCH_EMULATOR_OS_THREADS
