// Batch norm: threads share the channels, and a channel's statistics are a thread's own.
//
// A vector register holds either consecutive inner elements of one channel, whose sums end in one number, or, where
// there is no inner dimension, consecutive channels, each with its own sum. `Channels` hides which: statistics are
// registers in both cases. Mean and variance are found as in layer_norm_cpu.cpp, accurate for mean >> deviation.
#include "seqkern/batch_norm.h"

#include <cmath>

#include "passes.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

// One channel, or with inner = 1 up to a register of them.
template <class A>
struct Channels {
  index_t batch, channels, inner, first;
  int count;

  bool wide() const { return inner == 1; }
  // The divisor of a mean; 1 for none, whose statistics and gradients are then 0.
  A count_or_one() const { return A(std::max<index_t>(batch * inner, 1)); }

  // f(offset, lanes) over all elements.
  template <class F>
  SEQKERN_INLINE void each(F f) const {
    for (index_t b = 0; b < batch; ++b) {
      index_t at = (b * channels + first) * inner;
      if (wide()) f(at, count);
      else for_columns<A>(inner, [&](index_t j, auto n) __attribute__((always_inline)) { f(at + j, n); });
    }
  }

  // Sums of what f(offset, lanes, terms) gives, in every lane that stands for a channel; added up row by row.
  template <int Count, class F>
  SEQKERN_INLINE void sum(Vec<A> (&sums)[Count], F f) const {
    for (auto& s : sums) s = Vec<A>{};
    for (index_t b = 0; b < batch; ++b) {
      index_t at = (b * channels + first) * inner;
      if (wide()) {
        Vec<A> terms[Count];
        f(at, count, terms);
        for (int i = 0; i < Count; ++i) sums[i] = sums[i] + terms[i];
        continue;
      }
      A row[Count];
      sum_columns<A>(inner, row,
                     [&](index_t j, auto n, Vec<A>* terms) __attribute__((always_inline)) { f(at + j, n, terms); });
      for (int i = 0; i < Count; ++i) sums[i] = sums[i] + row[i];
    }
  }

  // A parameter, or `otherwise` where there is none.
  Vec<A> read(const void* array, A otherwise) const {
    if (!array) return splat(otherwise);
    auto from = static_cast<const A*>(array) + first;
    return wide() ? load_n(from, count) : splat(*from);
  }
  void write(void* array, Vec<A> v) const {
    if (array) store_n(static_cast<A*>(array) + first, v, count);
  }
};

// f(channels) over every thread's part.
template <class A, class Params, class F>
void for_channels(const Params& p, F f) {
  constexpr int L = kLanes<A>;
  int width = p.inner == 1 ? L : 1;
  index_t blocks = ceil_div(p.channels, width);
  Job job;
  auto body = [&](int rank, int threads, Barrier&) {
    Range own = share(blocks, rank, threads);
    for (index_t k = own.begin; k < own.end; ++k)
      f(Channels<A>{p.batch, p.channels, p.inner, k * width, int(std::min<index_t>(width, p.channels - k * width))});
  };
  double work = double(p.batch) * double(p.channels) * double(p.inner);
  job.run(int(std::min<index_t>(threads_for(work, kElementGrain), std::max<index_t>(blocks, 1))), body);
}

template <class A>
Vec<A> inverse_root(Vec<A> v) {
  for (int i = 0; i < kLanes<A>; ++i) v[i] = A(1) / std::sqrt(v[i]);
  return v;
}

template <class A>
struct Statistics {
  Vec<A> mean, shift, variance;  // the mean is mean + shift
};

template <class T, class A = acc_t<T>>
Statistics<A> batch_statistics(const Channels<A>& c, const T* x) {
  A n = c.count_or_one();
  Vec<A> sum[1], sums[2];
  c.sum(sum, [&](index_t at, auto k, Vec<A>* terms) __attribute__((always_inline)) { terms[0] = load_n(x + at, k); });
  Vec<A> mean = sum[0] / n;
  c.sum(sums, [&](index_t at, auto k, Vec<A>* terms) __attribute__((always_inline)) {
    Vec<A> d = first_lanes(load_n(x + at, k) - mean, k);
    terms[0] = d, terms[1] = d * d;
  });
  Vec<A> shift = sums[0] / n;
  return {mean, shift, sums[1] / n - shift * shift};
}

template <class T>
void forward(const BatchNormForward& p) {
  using A = acc_t<T>;
  auto x = static_cast<const T*>(p.x);
  auto y = static_cast<T*>(p.y);
  for_channels<A>(p, [&](const Channels<A>& c) {
    Statistics<A> s{c.read(p.running_mean, 0), {}, c.read(p.running_var, 1)};
    if (p.training) {
      Vec<A> old_mean = s.mean, old_var = s.variance;
      s = batch_statistics<T>(c, x);
      A keep = A(1 - p.momentum), take = A(p.momentum), n = A(c.batch * c.inner);
      c.write(p.running_mean, keep * old_mean + take * (s.mean + s.shift));
      c.write(p.running_var, keep * old_var + take * (s.variance * (n / (n - 1))));
    }
    Vec<A> rstd = inverse_root<A>(s.variance + A(p.eps));
    c.write(p.mean, s.mean + s.shift);
    c.write(p.rstd, rstd);
    Vec<A> scale = rstd * c.read(p.weight, 1), bias = c.read(p.bias, 0);
    c.each([&](index_t at, auto k) __attribute__((always_inline)) {
      store_n(y + at, ((load_n(x + at, k) - s.mean) - s.shift) * scale + bias, k);
    });
  });
}

template <class T>
void backward(const BatchNormBackward& p) {
  using A = acc_t<T>;
  auto x = static_cast<const T*>(p.x), dy = static_cast<const T*>(p.dy);
  auto dx = static_cast<T*>(p.dx);
  for_channels<A>(p, [&](const Channels<A>& c) {
    A n = c.count_or_one();
    Vec<A> mean = c.read(p.mean, 0), rstd = c.read(p.rstd, 1), scale = rstd * c.read(p.weight, 1), sums[3];
    c.sum(sums, [&](index_t at, auto k, Vec<A>* terms) __attribute__((always_inline)) {
      Vec<A> d = first_lanes(load_n(x + at, k) - mean, k), g = load_n(dy + at, k);
      terms[0] = d, terms[1] = g, terms[2] = g * d;
    });
    Vec<A> shift = p.training ? sums[0] / n : Vec<A>{};
    Vec<A> dweight = (sums[2] - shift * sums[1]) * rstd;
    c.write(p.dweight, dweight);
    c.write(p.dbias, sums[1]);
    Vec<A> mean_g = p.training ? sums[1] / n : Vec<A>{}, along = p.training ? dweight / n * rstd : Vec<A>{};
    c.each([&](index_t at, auto k) __attribute__((always_inline)) {
      Vec<A> d = (load_n(x + at, k) - mean) - shift;
      store_n(dx + at, scale * (load_n(dy + at, k) - mean_g - d * along), k);
    });
  });
}

}  // namespace

void batch_norm_forward(const BatchNormForward& p) {
  for_type(p.dtype, [&]<class T>() { forward<T>(p); });
}
void batch_norm_backward(const BatchNormBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
