// Max pooling on the CPU. Threads share the planes. A plane is copied with -inf round it and its columns split by
// stride (conv_image.h), so that every tap of the window is one contiguous load for a register of outputs; the
// lanes keep the best value and the number of the tap it came from.
#include "seqkern/pool.h"

#include <limits>

#include "conv_image.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class A>
using TapNumber = std::conditional_t<std::is_same_v<A, double>, std::int64_t, std::int32_t>;

// Where the window of output (h, w) reads for tap (i, j), in the plane.
struct Window {
  const MaxPoolForward& p;
  index_t row(index_t h, index_t i) const { return h * p.stride.height - p.padding.height + i * p.dilation.height; }
  index_t column(index_t w, index_t j) const { return w * p.stride.width - p.padding.width + j * p.dilation.width; }

  // Of the tap numbered `tap`, or of the first one inside the plane: where every value is -inf none is better.
  index_t index(index_t h, index_t w, index_t tap) const {
    index_t i = tap / p.kernel.width, j = tap % p.kernel.width;
    if (tap < 0)
      for (i = 0, j = 0; row(h, i) < 0; ++i) continue;
    if (tap < 0)
      while (column(w, j) < 0) ++j;
    return row(h, i) * p.in.width + column(w, j);
  }
};

template <class T>
void forward(const MaxPoolForward& p) {
  using A = acc_t<T>;
  using N = TapNumber<A>;
  constexpr int L = kLanes<A>;
  auto padded_size = [](index_t out, index_t stride, index_t kernel, index_t dilation) {
    return (out - 1) * stride + (kernel - 1) * dilation + 1;
  };
  PaddedImages<A> image(padded_size(p.out.height, p.stride.height, p.kernel.height, p.dilation.height),
                        padded_size(p.out.width, p.stride.width, p.kernel.width, p.dilation.width), p.stride.width);
  index_t in = p.in.height * p.in.width, out = p.out.height * p.out.width;
  index_t taps = p.kernel.height * p.kernel.width;
  if (p.planes * out == 0) return;
  Job job;
  int threads = threads_for(double(p.planes) * double(image.plane() + out * taps), 1.0e5);
  index_t* offset = job.take<index_t>(taps);
  for (index_t t = 0; t < taps; ++t)
    offset[t] = image.place(t / p.kernel.width * p.dilation.height, t % p.kernel.width * p.dilation.width);
  image.take(job, threads);
  const Window window{p};
  auto pool_row = [&](const A* plane, index_t h, T* y, index_t* indices) {
    for (index_t w = 0; w < p.out.width; w += L) {
      const A* from = plane + h * p.stride.height * image.row() + w;
      Vec<A> best = splat(-std::numeric_limits<A>::infinity());
      Vec<N> tap = splat(N(-1));
      for (index_t t = 0; t < taps; ++t) {
        Vec<A> v = load(from + offset[t]);
        auto better = (v > best) | (v != v);
        best = better ? v : best;
        tap = better ? splat(N(t)) : tap;
      }
      int n = int(std::min<index_t>(L, p.out.width - w));
      store_n(y + w, best, n);
      if (indices)
        for (int i = 0; i < n; ++i) indices[w + i] = window.index(h, w + i, tap[i]);
    }
  };
  auto body = [&](int rank, int n, Barrier&) {
    Range own = share(p.planes, rank, n);
    A* plane = image.data + rank * image.plane();
    for (index_t i = own.begin; i < own.end; ++i) {
      image.fill_plane(static_cast<const T*>(p.x) + i * in, p.in, p.padding, -std::numeric_limits<A>::infinity(),
                       plane);
      for (index_t h = 0; h < p.out.height; ++h) {
        index_t at = i * out + h * p.out.width;
        pool_row(plane, h, static_cast<T*>(p.y) + at, p.indices ? p.indices + at : nullptr);
      }
    }
  };
  job.run(threads, body);
}

template <class T>
void backward(const MaxPoolBackward& p) {
  using A = acc_t<T>;
  Job job;
  int threads = threads_for(double(p.planes) * double(p.in_size + p.out_size), 1.0e5);
  A* sums = std::is_same_v<T, A> ? nullptr : job.take<A>(threads * p.in_size);
  auto body = [&](int rank, int n, Barrier&) {
    Range own = share(p.planes, rank, n);
    for (index_t i = own.begin; i < own.end; ++i) {
      T* dx = static_cast<T*>(p.dx) + i * p.in_size;
      A* to;
      if constexpr (std::is_same_v<T, A>) to = dx;
      else to = sums + rank * p.in_size;
      std::fill(to, to + p.in_size, A{});
      for (index_t q = i * p.out_size; q < (i + 1) * p.out_size; ++q)
        to[p.indices[q]] += from_storage(static_cast<const T*>(p.dy)[q]);
      if constexpr (!std::is_same_v<T, A>)
        for (index_t q = 0; q < p.in_size; ++q) dx[q] = to_storage<T>(to[q]);
    }
  };
  job.run(threads, body);
}

}  // namespace

void max_pool_forward(const MaxPoolForward& p) {
  for_type(p.dtype, [&]<class T>() { forward<T>(p); });
}
void max_pool_backward(const MaxPoolBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
