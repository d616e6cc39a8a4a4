// Softmax, log-softmax and cross-entropy on the GPU. A row is read once for the maximum and once for the sum, from
// then on out of L1 or L2.
#include "seqkern/softmax.h"

#include "cuda/rows.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <class A>
struct Lse {
  A max, sum;
};

// max and sum of exp(x - max) of a row. A row of -inf alone has max 0 here, so that no NaN is made.
template <class T, class A = acc_t<T>>
SEQKERN_INLINE Lse<A> row_lse(const T* x, index_t columns) {
  A top = -infinity<A>(), sum = 0;
  for_columns(columns, [&](index_t j) { top = Max{}(load(x + j), top); });
  top = reduce_row(Max{}, top);
  if (top == -infinity<A>()) top = 0;
  for_columns(columns, [&](index_t j) { sum += exp(load(x + j) - top); });
  return {top, reduce_row(Sum{}, sum)};
}

template <class T>
__global__ void softmax_forward_kernel(SoftmaxForward p) {
  for_rows(p.rows, [&](index_t r) {
    auto x = static_cast<const T*>(p.x) + r * p.columns;
    auto y = static_cast<T*>(p.y) + r * p.columns;
    auto s = row_lse(x, p.columns);
    auto log_sum = log(s.sum);  // apart from the maximum, which may be far larger
    for_columns(p.columns, [&](index_t j) {
      auto above = load(x + j) - s.max;
      store(y + j, p.log ? above - log_sum : exp(above) / s.sum);
    });
  });
}

template <class T>
__global__ void softmax_backward_kernel(SoftmaxBackward p) {
  using A = acc_t<T>;
  for_rows(p.rows, [&](index_t r) {
    auto y = static_cast<const T*>(p.y) + r * p.columns, dy = static_cast<const T*>(p.dy) + r * p.columns;
    auto dx = static_cast<T*>(p.dx) + r * p.columns;
    A sum = 0;
    for_columns(p.columns, [&](index_t j) { sum += p.log ? load(dy + j) : load(dy + j) * load(y + j); });
    sum = reduce_row(Sum{}, sum);
    for_columns(p.columns, [&](index_t j) {
      A d = load(dy + j), v = load(y + j);
      store(dx + j, p.log ? d - exp(v) * sum : v * (d - sum));
    });
  });
}

template <class T>
__global__ void cross_entropy_forward_kernel(CrossEntropyForward p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing);
  for_rows(p.rows, [&](index_t r) {
    auto x = static_cast<const T*>(p.logits) + r * p.columns;
    index_t t = p.target[r];
    A loss = 0, lse = 0;
    if (t != p.ignore_index) {
      auto s = row_lse(x, p.columns);
      A log_sum = log(s.sum);
      lse = s.max + log_sum;
      loss = (1 - smooth) * (log_sum - (load(x + t) - s.max));  // no cancellation against a large max
      if (smooth != 0) {
        A total = 0;
        for_columns(p.columns, [&](index_t j) { total += load(x + j) - s.max; });
        loss += smooth * (log_sum - reduce_row(Sum{}, total) / A(p.columns));
      }
    }
    if (threadIdx.x == 0) {
      static_cast<A*>(p.loss)[r] = loss;
      static_cast<A*>(p.lse)[r] = lse;
    }
  });
}

template <class T>
__global__ void cross_entropy_backward_kernel(CrossEntropyBackward p) {
  using A = acc_t<T>;
  A smooth = A(p.label_smoothing), even = smooth / A(p.columns);
  for_rows(p.rows, [&](index_t r) {
    auto x = static_cast<const T*>(p.logits) + r * p.columns;
    auto dx = static_cast<T*>(p.dlogits) + r * p.columns;
    index_t t = p.target[r];
    bool ignored = t == p.ignore_index;
    A lse = static_cast<const A*>(p.lse)[r], scale = ignored ? A(0) : static_cast<const A*>(p.scale)[r];
    for_columns(p.columns, [&](index_t j) {
      A d = exp(load(x + j) - lse) - even - (j == t ? 1 - smooth : A(0));
      store(dx + j, ignored ? A(0) : scale * d);
    });
  });
}

}  // namespace

void softmax_forward(const SoftmaxForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, p.columns, stream, softmax_forward_kernel<T>, p); });
}
void softmax_backward(const SoftmaxBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, p.columns, stream, softmax_backward_kernel<T>, p); });
}
void cross_entropy_forward(const CrossEntropyForward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, p.columns, stream, cross_entropy_forward_kernel<T>, p); });
}
void cross_entropy_backward(const CrossEntropyBackward& p, void* stream) {
  for_type(p.dtype, [&]<class T>() { launch_rows(p.rows, p.columns, stream, cross_entropy_backward_kernel<T>, p); });
}

}  // namespace seqkern::cuda
