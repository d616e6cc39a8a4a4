// Embedding look-up and its scatter-add gradient. Threads share the columns of the gradient, each walking the
// ids in order, so the sums are the same for any number of threads.
#include "seqkern/embedding.h"

#include <algorithm>
#include <cstring>

#include "cpu/thread_pool.h"
#include "simd/vec.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
void backward(const EmbeddingBackward& p) {
  using A = acc_t<T>;
  constexpr int L = kLanes<A>;
  Job job;
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(ceil_div(p.width, L), rank, threads);
    index_t begin = own.begin * L, end = std::min(own.end * L, p.width);
    auto dweight = static_cast<A*>(p.dweight);
    for (index_t r = 0; r < p.rows; ++r) std::fill(dweight + r * p.width + begin, dweight + r * p.width + end, A{});
    for (index_t i = 0; i < p.count; ++i) {
      if (p.ids[i] == p.padding_idx) continue;
      A* to = dweight + p.ids[i] * p.width;
      const T* dy = static_cast<const T*>(p.dy) + i * p.width;
      for (index_t j = begin; j < end; j += L) {
        int n = int(std::min<index_t>(L, end - j));
        store_n(to + j, load_n(to + j, n) + load_n(dy + j, n), n);
      }
    }
  };
  job.run(threads_for(double(p.count + p.rows) * double(p.width), 1.0e5), body);
}

}  // namespace

void embedding_forward(const EmbeddingForward& p) {
  Job job;
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(p.count, rank, threads);
    for (index_t i = own.begin; i < own.end; ++i)
      std::memcpy(static_cast<char*>(p.y) + i * p.row_bytes,
                  static_cast<const char*>(p.weight) + p.ids[i] * p.row_bytes, std::size_t(p.row_bytes));
  };
  job.run(threads_for(double(p.count) * double(p.row_bytes), 1.0e6), body);
}

void embedding_backward(const EmbeddingBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
