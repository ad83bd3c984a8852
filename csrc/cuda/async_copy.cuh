// Asynchronous 16-byte copies from global to shared memory (cp.async of sm_80). Copies are
// committed in groups, and a thread can wait for its own groups only. A thread sees what other
// threads copied after they have waited too and the block has passed a barrier.
#pragma once

#include "cuda/launch.cuh"

#ifndef __CUDACC__
#include <deque>
#include <utility>
#include <vector>
#endif

namespace trajmatch::cuda {

#ifdef __CUDACC__

class AsyncCopies {
 public:
  // Adds a copy to the group that the next commit closes. If `exists` is false, `from` is not read,
  // and zeros are written.
  __device__ __forceinline__ void start(float4* to, const float4* from, bool exists = true) {
#if __CUDA_ARCH__ >= 800
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const unsigned bytes = exists ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(bytes)
                 : "memory");
#else
    *to = exists ? *from : float4{0.0f, 0.0f, 0.0f, 0.0f};
#endif
  }
  __device__ __forceinline__ void commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  // Waits until at most the last `latest` groups of this thread are still in flight.
  template <int latest>
  __device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(latest) : "memory");
#endif
  }
};

#else

// The emulator copies as late as allowed, so that a missing wait shows, or under other schedules at
// once, so that overwriting data in use shows.
class AsyncCopies {
 public:
  void start(float4* to, const float4* from, bool exists = true) {
    const std::pair<float4*, const float4*> copy(to, exists ? from : nullptr);
    if (::emulator::copies_immediately()) return make(copy);
    open_.push_back(copy);
  }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  template <int latest>
  void wait() {
    while (groups_.size() > latest) {
      for (const auto& copy : groups_.front()) make(copy);
      groups_.pop_front();
    }
  }

 private:
  static void make(const std::pair<float4*, const float4*>& copy) {
    *copy.first = copy.second == nullptr ? float4{0.0f, 0.0f, 0.0f, 0.0f} : *copy.second;
  }
  std::vector<std::pair<float4*, const float4*> > open_;
  std::deque<std::vector<std::pair<float4*, const float4*> > > groups_;
};

#endif

}  // namespace trajmatch::cuda
