// One pass over arrays: dropout, optimiser updates, the scalar functions by themselves, machine probes. Plain
// loops where the compiler vectorises them.
#include "seqkern/elementwise.h"

#include <algorithm>
#include <cmath>

#include "passes.h"
#include "philox.h"
#include "simd/math.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
void drop(const Dropout& p) {
  using A = acc_t<T>;
  auto x = static_cast<const T*>(p.x);
  auto y = static_cast<T*>(p.y);
  A scale = p.p < 1 ? A(1 / (1 - p.p)) : A(0);
  std::uint64_t threshold = std::uint64_t(p.p * 4294967296.0);
  for_ranges(p.count, [&](index_t begin, index_t end) {
    Words r;
    for (index_t e = begin; e < end; e += 4 * kPhilox) {
      philox(std::uint64_t(e / 4), p.offset, p.seed, r);
      for (index_t i = 0; i < std::min<index_t>(4 * kPhilox, end - e); ++i)
        y[e + i] = to_storage<T>(r.element(i) >= threshold ? from_storage(x[e + i]) * scale : A(0));
    }
  });
}

template <class T>
void sgd(const SgdUpdate& p) {
  using A = acc_t<T>;
  auto param = static_cast<T*>(p.param);
  auto grad = static_cast<const A*>(p.grad);
  auto buffer = static_cast<A*>(p.momentum_buffer);
  A lr = A(p.lr), momentum = A(p.momentum), keep = A(1 - p.dampening), decay = A(p.weight_decay);
  for_ranges(p.count, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      A w = from_storage(param[i]), g = grad[i] + decay * w;
      if (buffer) {
        A b = buffer[i] = momentum * buffer[i] + keep * g;
        g = p.nesterov ? g + momentum * b : b;
      }
      param[i] = to_storage<T>(w - lr * g);
    }
  });
}

template <class T>
void adagrad(const AdagradUpdate& p) {
  using A = acc_t<T>;
  auto param = static_cast<T*>(p.param);
  auto grad = static_cast<const A*>(p.grad);
  auto sum = static_cast<A*>(p.sum);
  A lr = A(p.lr), eps = A(p.eps), decay = A(p.weight_decay);
  for_ranges(p.count, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      A w = from_storage(param[i]), g = grad[i] + decay * w;
      A s = sum[i] = sum[i] + g * g;
      param[i] = to_storage<T>(w - lr * g / (std::sqrt(s) + eps));
    }
  });
}

template <class T>
void adamw(const AdamwUpdate& p) {
  using A = acc_t<T>;
  auto param = static_cast<T*>(p.param);
  auto grad = static_cast<const A*>(p.grad);
  auto m = static_cast<A*>(p.exp_avg), v = static_cast<A*>(p.exp_avg_sq);
  A beta1 = A(p.beta1), beta2 = A(p.beta2), rest1 = A(1 - p.beta1), rest2 = A(1 - p.beta2), eps = A(p.eps);
  A shrink = A(1 - p.lr * p.weight_decay);
  A step = A(p.lr / (1 - std::pow(p.beta1, double(p.step)))),
    root = A(1 / std::sqrt(1 - std::pow(p.beta2, double(p.step))));
  for_ranges(p.count, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      A g = grad[i];
      A mi = m[i] = beta1 * m[i] + rest1 * g;
      A vi = v[i] = beta2 * v[i] + rest2 * g * g;
      param[i] = to_storage<T>(from_storage(param[i]) * shrink - step * mi / (std::sqrt(vi) * root + eps));
    }
  });
}

}  // namespace

void dropout(const Dropout& p) {
  for_type(p.dtype, [&]<class T>() { drop<T>(p); });
}
void sgd_update(const SgdUpdate& p) {
  for_type(p.dtype, [&]<class T>() { sgd<T>(p); });
}
void adagrad_update(const AdagradUpdate& p) {
  for_type(p.dtype, [&]<class T>() { adagrad<T>(p); });
}
void adamw_update(const AdamwUpdate& p) {
  for_type(p.dtype, [&]<class T>() { adamw<T>(p); });
}

void map(const Map& p) {
  constexpr int L = kLanes<float>;
  for_ranges(p.count, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; i += L) {
      int n = int(std::min<index_t>(L, end - i));
      Vec<float> x = load_n(p.x + i, n);
      switch (p.function) {
        case Function::exp: x = exp(x); break;
        case Function::tanh: x = tanh(x); break;
        case Function::sigmoid: x = sigmoid(x); break;
        case Function::erf: x = erf(x); break;
        case Function::round_bf16: x = widen(narrow(x)); break;
      }
      store_n(p.y + i, x, n);
    }
  });
}

}  // namespace seqkern::SEQKERN_ISA
