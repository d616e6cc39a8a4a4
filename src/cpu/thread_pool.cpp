#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace seqkern {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpinIdle = std::chrono::microseconds(200);
constexpr auto kSpinBarrier = std::chrono::microseconds(20);
constexpr auto kCrowdedLeast = std::chrono::nanoseconds(250'000), kCrowdedMost = std::chrono::nanoseconds(50'000'000);
constexpr std::size_t kKeepBytes = std::size_t(256) << 20;  // a larger workspace is given back after the job

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or the time is over. The clock is read only now and then: it costs as much as a poll.
template <class Ready, class Duration>
bool spin(Ready ready, Duration limit) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    relax();
  }
  auto end = Clock::now() + limit;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return ready();
}

std::atomic<int> allocation_countdown{0};

int cgroup_quota() {
  long long quota = 0, period = 0;
  if (std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    int got = std::fscanf(f, "%lld %lld", &quota, &period);
    std::fclose(f);
    if (got == 2 && quota > 0 && period > 0) return int(std::max(1LL, (quota + period - 1) / period));
  }
  return 1 << 16;
}

int from_environment(const char* name) {
  const char* text = std::getenv(name);
  int n = text ? std::atoi(text) : 0;
  return n > 0 ? std::min(n, 1024) : 0;
}

struct Task {
  void (*fn)(void*, int, int, Barrier&) = nullptr;
  void* context = nullptr;
  int threads = 1;
  Barrier* barrier = nullptr;
  std::atomic<int>* left = nullptr;
};

// A worker and its letter box: it is woken only for jobs that need its rank.
class Worker {
 public:
  explicit Worker(int rank) : rank_(rank) {
    std::thread([this] { loop(); }).detach();
  }

  void post(const Task& task) {
    task_ = task;
    ticket_.fetch_add(1);  // publishes the task; sequentially consistent with asleep_
    if (asleep_.load()) {
      std::lock_guard lock(mutex_);
      wake_.notify_one();
    }
  }

 private:
  void loop() {
    for (std::uint32_t seen = 0;; ++seen) {
      auto fresh = [&] { return ticket_.load() != seen; };
      if (!spin(fresh, kSpinIdle)) {
        std::unique_lock lock(mutex_);
        asleep_ = true;
        wake_.wait(lock, fresh);
        asleep_ = false;
      }
      Task task = task_;  // a copy: once `left` is down the next one may be posted
      task.fn(task.context, rank_, task.threads, *task.barrier);
      if (task.left->fetch_sub(1, std::memory_order_release) == 1) task.left->notify_one();
    }
  }

  int rank_;
  Task task_;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<std::uint32_t> ticket_{0};
  std::atomic<bool> asleep_{false};
};

class Pool {
 public:
  std::mutex turn;  // held by the running Job
  Workspace workspace;
  std::atomic<int> threads{default_num_threads()};
  bool odd = false;  // changed by the holder of the turn

  bool crowded() const { return Clock::now() < crowded_until_; }  // asked by the holder of the turn only

  void run(Task task) {
    while (int(workers_.size()) + 1 < task.threads)
      workers_.push_back(std::make_unique<Worker>(int(workers_.size()) + 1));
    auto start = Clock::now();
    barrier_.reset(task.threads);
    task.barrier = &barrier_;
    task.left = &left_;
    left_.store(task.threads - 1, std::memory_order_relaxed);
    for (int rank = 1; rank < task.threads; ++rank) workers_[std::size_t(rank - 1)]->post(task);
    task.fn(task.context, 0, task.threads, barrier_);
    std::chrono::nanoseconds asleep = barrier_.asleep() / std::max(task.threads - 1, 1);
    auto done = [&] { return left_.load(std::memory_order_acquire) == 0; };
    if (!spin(done, kSpinBarrier)) {
      auto from = Clock::now();
      while (int left = left_.load(std::memory_order_acquire)) left_.wait(left, std::memory_order_acquire);
      asleep += Clock::now() - from;
    }
    auto end = Clock::now();
    if (task.threads > 1 && start >= crowded_until_ && 2 * asleep > end - start)
      crowded_until_ = end + std::clamp(4 * asleep, kCrowdedLeast, kCrowdedMost);
  }

 private:
  Barrier barrier_;
  Clock::time_point crowded_until_{};
  std::vector<std::unique_ptr<Worker>> workers_;
  alignas(64) std::atomic<int> left_{0};
};

// Never destroyed: its detached workers outlive static destructors. A forked child has none of the
// workers and an unknown lock state, so it starts over with a pool of its own.
Pool* the_pool = nullptr;

Pool& pool() {
  static const bool once = [] {
    the_pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] {
      int threads = the_pool->threads;
      the_pool = new Pool;
      the_pool->threads = threads;
    });
    return true;
  }();
  (void)once;
  return *the_pool;
}

}  // namespace

int default_num_threads() {
  if (int n = from_environment("SEQKERN_NUM_THREADS")) return n;
  if (int n = from_environment("OMP_NUM_THREADS")) return n;
  int n = int(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  n = std::min(n, cgroup_quota());
#endif
  return n;
}

int num_threads() { return pool().threads; }
void set_num_threads(int n) { pool().threads = std::clamp(n, 1, 1024); }

int threads_for(double work, double grain) {
  int useful = int(std::min(work / grain, 1e6)) + 1;
  int threads = std::min(num_threads(), useful);
  return threads > 1 && pool().crowded() ? (threads + 1) / 2 : threads;
}

void fail_allocation(int nth) { allocation_countdown = nth; }
void count_allocation() {
  if (allocation_countdown.load(std::memory_order_relaxed) > 0 && --allocation_countdown == 0) throw std::bad_alloc();
}

void Barrier::wait() {
  if (threads_ == 1) return;
  std::uint32_t now = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == std::uint32_t(threads_)) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(now + 1);
    if (sleepers_.load() > 0) generation_.notify_all();
    return;
  }
  auto open = [&] { return generation_.load(std::memory_order_acquire) != now; };
  if (spin(open, kSpinBarrier)) return;
  // A partner was preempted. Asleep, this thread leaves its core to whoever needs it, and wakes ahead of them.
  auto from = Clock::now();
  sleepers_.fetch_add(1);
  while (generation_.load() == now) generation_.wait(now);
  sleepers_.fetch_sub(1);
  asleep_.fetch_add(std::chrono::nanoseconds(Clock::now() - from).count(), std::memory_order_relaxed);
}

void* Workspace::take_bytes(std::size_t bytes) {
  constexpr std::size_t kAlign = 128, kMinimum = std::size_t(1) << 20;
  constexpr std::size_t kHeader = (sizeof(Block) + kAlign - 1) / kAlign * kAlign;
  bytes = (bytes + kAlign - 1) / kAlign * kAlign;
  for (Block* b = blocks_; b; b = b->next)
    if (b->size - b->used >= bytes) {
      char* p = reinterpret_cast<char*>(b) + kHeader + b->used;
      b->used += bytes;
      return p;
    }
  count_allocation();
  std::size_t size = std::max(bytes, kMinimum);
  auto* b = static_cast<Block*>(::operator new(kHeader + size, std::align_val_t(4096)));
  *b = {blocks_, size, 0};
  blocks_ = b;
  return take_bytes(bytes);
}

void Workspace::rewind() {
  std::size_t total = 0;
  for (Block* b = blocks_; b; b = b->next) {
    total += b->size;
    b->used = 0;
  }
  if (total > kKeepBytes) release();
}

void Workspace::release() {
  while (blocks_) ::operator delete(std::exchange(blocks_, blocks_->next), std::align_val_t(4096));
}

Job::Job() {
  pool().turn.lock();
  odd_ = pool().odd = !pool().odd;
}
Job::~Job() {
  pool().workspace.rewind();
  pool().turn.unlock();
}
Workspace& Job::workspace() { return pool().workspace; }
void Job::run_erased(int threads, Erased fn, void* context) { pool().run({fn, context, threads}); }

}  // namespace seqkern
