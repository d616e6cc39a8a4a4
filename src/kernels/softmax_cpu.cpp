// Softmax, log-softmax and cross-entropy: a row at a time, three passes over what is then in L1.
#include "seqkern/softmax.h"

#include "passes.h"
#include "simd/math.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class A>
struct Lse {
  A max, sum;
  A value() const { return max + std::log(sum); }
};

// max and sum of e = exp(x - max) of a row; keep(column, lanes, e). A row of -inf alone has max 0 here, so that no NaN
// is made; a NaN is no maximum, but makes the sum NaN.
template <class T, class Keep, class A = acc_t<T>>
Lse<A> row_lse(const T* x, index_t columns, Keep keep) {
  constexpr A lowest = -__builtin_huge_val();
  Vec<A> top = splat(lowest);
  for_columns<A>(columns, [&](index_t j, auto n) {
    Vec<A> v = load_n(x + j, n);
    if (n < kLanes<A>)
      for (int i = n; i < kLanes<A>; ++i) v[i] = lowest;
    top = max(v, top);
  });
  A best = max_lanes(top);
  if (best == lowest) best = 0;
  Vec<A> sum{};
  for_columns<A>(columns, [&](index_t j, auto n) {
    Vec<A> e = exp(load_n(x + j, n) - best);
    keep(j, n, e);
    for (int i = n; i < kLanes<A>; ++i) e[i] = 0;
    sum = sum + e;
  });
  return {best, sum_lanes(sum)};
}
template <class T>
auto row_lse(const T* x, index_t columns) {
  return row_lse(x, columns, [](auto...) {});
}

template <class T>
void forward(const SoftmaxForward& p) {
  using A = acc_t<T>;
  for_rows(p.rows, p.columns, [&](index_t r) {
    auto x = static_cast<const T*>(p.x) + r * p.columns;
    auto y = static_cast<T*>(p.y) + r * p.columns;
    if (p.log) {
      auto s = row_lse(x, p.columns);
      A log_sum = std::log(s.sum);  // apart from the maximum, which may be far larger
      for_columns<A>(p.columns, [&](index_t j, auto n) { store_n(y + j, (load_n(x + j, n) - s.max) - log_sum, n); });
    } else if constexpr (std::is_same_v<T, A>) {
      A inverse = 1 / row_lse(x, p.columns, [&](index_t j, auto n, Vec<A> e) { store_n(y + j, e, n); }).sum;
      for_columns<A>(p.columns, [&](index_t j, auto n) { store_n(y + j, load_n(y + j, n) * inverse, n); });
    } else {  // e must not be rounded to storage before it is divided
      auto s = row_lse(x, p.columns);
      A inverse = 1 / s.sum;
      for_columns<A>(p.columns, [&](index_t j, auto n) { store_n(y + j, exp(load_n(x + j, n) - s.max) * inverse, n); });
    }
  });
}

template <class T>
void backward(const SoftmaxBackward& p) {
  using A = acc_t<T>;
  for_rows(p.rows, p.columns, [&](index_t r) {
    auto y = static_cast<const T*>(p.y) + r * p.columns, dy = static_cast<const T*>(p.dy) + r * p.columns;
    auto dx = static_cast<T*>(p.dx) + r * p.columns;
    Vec<A> sums{};
    for_columns<A>(p.columns, [&](index_t j, auto n) {
      sums = sums + (p.log ? load_n(dy + j, n) : load_n(dy + j, n) * load_n(y + j, n));
    });
    A sum = sum_lanes(sums);
    for_columns<A>(p.columns, [&](index_t j, auto n) {
      Vec<A> d = load_n(dy + j, n), v = load_n(y + j, n);
      store_n(dx + j, p.log ? d - exp(v) * sum : v * (d - sum), n);
    });
  });
}

template <class T>
void loss_forward(const CrossEntropyForward& p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing);
  for_rows(p.rows, p.columns, [&](index_t r) {
    auto x = static_cast<const T*>(p.logits) + r * p.columns;
    A &loss = static_cast<A*>(p.loss)[r], &lse = static_cast<A*>(p.lse)[r];
    index_t t = p.target[r];
    loss = lse = 0;
    if (t == p.ignore_index) return;
    auto s = row_lse(x, p.columns);
    lse = s.value();
    // log(sum) - (x_t - max): no cancellation against a large max
    loss = (1 - smooth) * (std::log(s.sum) - (from_storage(x[t]) - s.max));
    if (smooth != 0) {
      Vec<A> total{};
      for_columns<A>(p.columns, [&](index_t j, auto n) {
        Vec<A> v = load_n(x + j, n) - s.max;
        for (int i = n; i < kLanes<A>; ++i) v[i] = 0;
        total = total + v;
      });
      loss += smooth * (std::log(s.sum) - sum_lanes(total) / A(p.columns));
    }
  });
}

template <class T>
void loss_backward(const CrossEntropyBackward& p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing), even = smooth / A(p.columns);
  for_rows(p.rows, p.columns, [&](index_t r) {
    auto x = static_cast<const T*>(p.logits) + r * p.columns;
    auto dx = static_cast<T*>(p.dlogits) + r * p.columns;
    index_t t = p.target[r];
    bool ignored = t == p.ignore_index;
    A lse = static_cast<const A*>(p.lse)[r], scale = ignored ? A(0) : static_cast<const A*>(p.scale)[r];
    for_columns<A>(p.columns, [&](index_t j, auto n) {
      store_n(dx + j, ignored ? Vec<A>{} : scale * (exp(load_n(x + j, n) - lse) - even), n);
    });
    if (!ignored) {
      A at = __builtin_exp(double(from_storage(x[t]) - lse));
      dx[t] = to_storage<T>(scale * (at - even - (1 - smooth)));
    }
  });
}

}  // namespace

void softmax_forward(const SoftmaxForward& p) {
  for_type(p.dtype, [&]<class T>() { forward<T>(p); });
}
void softmax_backward(const SoftmaxBackward& p) {
  for_type(p.dtype, [&]<class T>() { backward<T>(p); });
}
void cross_entropy_forward(const CrossEntropyForward& p) {
  for_type(p.dtype, [&]<class T>() { loss_forward<T>(p); });
}
void cross_entropy_backward(const CrossEntropyBackward& p) {
  for_type(p.dtype, [&]<class T>() { loss_backward<T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
