// One small persistent pool for the whole process, its barrier, and the scratch memory of the running job.
//
// A job runs fn on `threads` threads, the caller being rank 0. One job runs at a time; other callers wait
// for their turn. Idle workers spin for some tens of microseconds (the next kernel of a model comes at once)
// and then sleep, and so do threads at a barrier: with more runnable threads than cores a thread that only
// spins would hold the core its partner needs.
#pragma once
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>

#include "seqkern/types.h"

namespace seqkern {

int num_threads();
void set_num_threads(int n);  // n >= 1
int default_num_threads();    // SEQKERN_NUM_THREADS, OMP_NUM_THREADS, else the cores this process may use

// All threads of a job meet here; the last to arrive lets the others go.
class Barrier {
 public:
  void reset(int threads) { threads_ = threads; }
  void wait();
  // How long threads have slept here since last asked, all together.
  std::chrono::nanoseconds asleep() { return std::chrono::nanoseconds(asleep_.exchange(0, std::memory_order_relaxed)); }

 private:
  int threads_ = 1;
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<std::int64_t> asleep_{0};
};

// Scratch memory of one job: bump allocation out of blocks that are kept for the next job, so that page
// faults are paid once. Everything is taken before the threads start.
class Workspace {
 public:
  template <class T>
  T* take(index_t count) {
    return static_cast<T*>(take_bytes(std::size_t(count) * sizeof(T)));
  }
  void* take_bytes(std::size_t bytes);  // 128-byte aligned, uninitialised
  void rewind();
  void release();  // free every block

 private:
  struct Block {
    Block* next;
    std::size_t size, used;
  };
  Block* blocks_ = nullptr;
};

// The right to run one job: holds the pool's lock and its workspace.
class Job {
 public:
  Job();
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  template <class T>
  T* take(index_t count) {
    return workspace().take<T>(count);
  }
  Workspace& workspace();
  // Alternates from job to job. Weights that outgrow the cache are walked the other way each time: those read last
  // are still there. Results may not depend on it.
  bool odd() const { return odd_; }

  // fn(rank, threads, barrier) on every rank.
  template <class F>
  void run(int threads, F& fn) {
    run_erased(threads, [](void* f, int rank, int n, Barrier& b) { (*static_cast<F*>(f))(rank, n, b); }, &fn);
  }

 private:
  using Erased = void (*)(void*, int rank, int threads, Barrier&);
  void run_erased(int threads, Erased fn, void* context);
  bool odd_;
};

// Threads worth using for this many multiply-adds: below the first grain the hand-over costs more. Half as many after
// a job that spent most of its time waiting for a thread to get a core, for a few times as long as it waited: the rest
// of the machine is busy then, and two threads taking turns on one core are slower than one. Results do not depend on
// it.
int threads_for(double work, double grain);

// [begin, end) of rank's share of n items.
struct Range {
  index_t begin, end;
};
inline __attribute__((always_inline)) Range share(index_t n, int rank, int threads) {
  return {n * rank / threads, n * (rank + 1) / threads};
}

// For tests: the nth native allocation from now throws bad_alloc; 0 turns it off.
void fail_allocation(int nth);
void count_allocation();  // throws when it is this one's turn

}  // namespace seqkern
