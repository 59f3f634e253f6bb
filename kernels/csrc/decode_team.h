// Threads of one parallel region that share out the work of a decode step and wait for each other
// between its parts. A wait is some hundred of these a step: it spins, and only gives the processor
// away when somebody is late, as happens where more threads than cores are busy.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

namespace lcpo {

struct Span {
  int64_t at, count;
};

class Barrier {
 public:
  // Until `size` threads wait here.
  void wait(int32_t size) {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < SPINS) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  static constexpr int SPINS = 2000;  // some 50 microseconds

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // Apart: those who wait read the one while those who arrive write the other.
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// One thread's place in a team of `size`.
struct Team {
  int32_t rank, size;
  Barrier* barrier;

  // Its part of some things.
  Span share(Span all) const {
    const int64_t at = all.count * rank / size;
    return {all.at + at, all.count * (rank + 1) / size - at};
  }
  void sync() const {
    if (size > 1) barrier->wait(size);
  }
};

}  // namespace lcpo
