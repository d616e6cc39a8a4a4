// Softmax, log-softmax and cross-entropy on the GPU. A row that a block can keep in registers is read once.
#include "seqkern/softmax.h"

#include "cuda/rows.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <class A>
struct Lse {
  A max, sum;
};

// e^x for the sums of a row of T: what rounding x log2(e) costs is far below what a 16-bit result can show.
template <class T, class A = acc_t<T>>
SEQKERN_INLINE A power(A x) {
  if constexpr (sizeof(T) == 2) return exp2_flushed(x * 1.44269504f);
  else return exp(x);
}

// max and sum of exp(x - max) of a row. A row of -inf alone has max 0 here, so that no NaN is made.
template <class T, class P, class A = acc_t<T>>
SEQKERN_INLINE Lse<A> row_lse(const KeptRow<T, P>& x, index_t columns) {
  A top = -infinity<A>(), sum = 0;
  for_columns<P>(columns, [&](index_t, A v) { top = Max{}(v, top); }, x);
  top = reduce_row(Max{}, top);
  if (top == -infinity<A>()) top = 0;
  for_columns<P>(columns, [&](index_t, A v) { sum += power<T>(v - top); }, x);
  return {top, reduce_row(Sum{}, sum)};
}

template <class T, class P>
__global__ void __launch_bounds__(kMostThreads<P>, P::kWhole ? 8 : 1) softmax_forward_kernel(SoftmaxForward p) {
  using A = acc_t<T>;
  for_rows(p.rows, [&](index_t r) {
    KeptRow<T, P> x(static_cast<const T*>(p.x) + r * p.columns, p.columns);
    auto y = static_cast<T*>(p.y) + r * p.columns;
    auto s = row_lse(x, p.columns);
    if (p.log) {
      A log_sum = log(s.sum);  // apart from the maximum, which may be far larger
      map_columns<P>(p.columns, y, [&](index_t, A v) { return v - s.max - log_sum; }, x);
    } else {
      A inverse = 1 / s.sum;
      map_columns<P>(p.columns, y, [&](index_t, A v) { return power<T>(v - s.max) * inverse; }, x);
    }
  });
}

template <class T, class P>
__global__ void softmax_backward_kernel(SoftmaxBackward p) {
  using A = acc_t<T>;
  for_rows(p.rows, [&](index_t r) {
    KeptRow<T, P> y(static_cast<const T*>(p.y) + r * p.columns, p.columns);
    KeptRow<T, P> dy(static_cast<const T*>(p.dy) + r * p.columns, p.columns);
    auto dx = static_cast<T*>(p.dx) + r * p.columns;
    A sum = 0;
    for_columns<P>(p.columns, [&](index_t, A v, A d) { sum += p.log ? d : d * v; }, y, dy);
    sum = reduce_row(Sum{}, sum);
    map_columns<P>(
        p.columns, dx, [&](index_t, A v, A d) { return p.log ? d - power<T>(v) * sum : v * (d - sum); }, y, dy);
  });
}

template <class T, class P>
__global__ void cross_entropy_forward_kernel(CrossEntropyForward p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing);
  for_rows(p.rows, [&](index_t r) {
    auto logits = static_cast<const T*>(p.logits) + r * p.columns;
    index_t t = p.target[r];
    A loss = 0, lse = 0;
    if (t != p.ignore_index) {
      KeptRow<T, P> x(logits, p.columns);
      auto s = row_lse(x, p.columns);
      A log_sum = log(s.sum);
      lse = s.max + log_sum;
      loss = (1 - smooth) * (log_sum - (load(logits + t) - s.max));  // no cancellation against a large max
      if (smooth != 0) {
        A total = 0;
        for_columns<P>(p.columns, [&](index_t, A v) { total += v - s.max; }, x);
        loss += smooth * (log_sum - reduce_row(Sum{}, total) / A(p.columns));
      }
    }
    if (threadIdx.x == 0) {
      static_cast<A*>(p.loss)[r] = loss;
      static_cast<A*>(p.lse)[r] = lse;
    }
  });
}

template <class T, class P>
__global__ void cross_entropy_backward_kernel(CrossEntropyBackward p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing), even = smooth / A(p.columns);
  for_rows(p.rows, [&](index_t r) {
    auto x = static_cast<const T*>(p.logits) + r * p.columns;
    index_t t = p.target[r];
    bool ignored = t == p.ignore_index;
    A lse = static_cast<const A*>(p.lse)[r], scale = ignored ? A(0) : static_cast<const A*>(p.scale)[r];
    map_columns<P>(
        p.columns, static_cast<T*>(p.dlogits) + r * p.columns,
        [&](index_t j, A v) {
          A d = power<T>(v - lse) - even - (j == t ? 1 - smooth : A(0));
          return ignored ? A(0) : scale * d;
        },
        x);
  });
}

}  // namespace

void softmax_forward(const SoftmaxForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_rows_of<T>(p.columns, {p.x, p.y}, [&]<class P>(dim3 threads, P) {
      launch_rows(p.rows, threads, stream, softmax_forward_kernel<T, P>, p);
    });
  });
}
void softmax_backward(const SoftmaxBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_rows_of<T>(p.columns, {p.y, p.dy, p.dx}, [&]<class P>(dim3 threads, P) {
      launch_rows(p.rows, threads, stream, softmax_backward_kernel<T, P>, p);
    });
  });
}
void cross_entropy_forward(const CrossEntropyForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_rows_of<T>(p.columns, {p.logits}, [&]<class P>(dim3 threads, P) {
      launch_rows(p.rows, threads, stream, cross_entropy_forward_kernel<T, P>, p);
    });
  });
}
void cross_entropy_backward(const CrossEntropyBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    for_rows_of<T>(p.columns, {p.logits, p.dlogits}, [&]<class P>(dim3 threads, P) {
      launch_rows(p.rows, threads, stream, cross_entropy_backward_kernel<T, P>, p);
    });
  });
}

}  // namespace seqkern::cuda
