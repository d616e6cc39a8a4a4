// What this machine gives, measured with the instructions the kernels use: the denominators of the benchmark.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "cpu/thread_pool.h"
#include "seqkern/elementwise.h"
#include "simd/vec.h"

namespace seqkern::SEQKERN_ISA {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// work() returns units done; repeated on every thread until the time is over.
template <class Work>
double rate(const Probe& p, Work work) {
  Job job;
  double* done = job.take<double>(p.threads * 16);
  auto body = [&](int rank, int, Barrier& barrier) {
    work(rank);  // first touch
    barrier.wait();
    double start = now(), units = 0, end;
    do {
      units += work(rank);
      end = now();
    } while (end - start < p.seconds);
    done[rank * 16] = units / (end - start);
  };
  job.run(p.threads, body);
  double total = 0;
  for (int i = 0; i < p.threads; ++i) total += done[i * 16];
  return total;
}

}  // namespace

void probe_fma(const Probe& p) {
  *p.result = rate(p, [](int) {
    Vec<float> acc[8] = {}, a = splat(0.999f), b = splat(0.001f);
    constexpr int kRounds = 20000;
    for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] = acc[j] * a + b;
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) asm volatile("" : "+x"(acc[j]));
    }
    return 2.0 * 8 * kLanes<float> * kRounds;
  });
}

void probe_read(const Probe& p) {
  constexpr index_t kStep = 8 * kVecBytes;
  index_t each = std::max<index_t>(p.bytes / p.threads / kStep, 1) * kStep;
  Workspace memory;
  char* base = static_cast<char*>(memory.take_bytes(std::size_t(each * p.threads)));
  std::memset(base, 0, std::size_t(each * p.threads));
  *p.result = rate(p, [&](int rank) {
    const char* from = base + rank * each;
    VecU acc[8] = {};
    for (index_t i = 0; i < each; i += kStep)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        VecU v;
        std::memcpy(&v, from + i + j * kVecBytes, sizeof v);
        acc[j] |= v;
      }
    for (auto& v : acc) asm volatile("" : : "x"(v));
    return double(each);
  });
  memory.release();
}

}  // namespace seqkern::SEQKERN_ISA
