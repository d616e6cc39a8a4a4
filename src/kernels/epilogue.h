// What becomes of the sums of a product, block by block, while they are in L1:
//   z = sums scale + bias,   c = act(z) + residual
#pragma once
#include <algorithm>

#include "seqkern/linear.h"
#include "simd/math.h"

#include "activation_cell.h"  // over math.h

namespace seqkern::SEQKERN_ISA {

struct Identity {
  template <class V>
  static SEQKERN_INLINE V value(V x) {
    return x;
  }
};

// run<F>() for the functions whose gradient is written in terms of z.
template <class Run>
void for_fused(const Fused& fused, Run run) {
  if (!fused.activates) return run.template operator()<Identity>();
  if (fused.function == Activation::relu) return run.template operator()<Relu>();
  if (fused.function == Activation::silu) return run.template operator()<Silu>();
  if (fused.function == Activation::gelu) return run.template operator()<Gelu>();
  return run.template operator()<GeluTanh>();
}

// bias and scale hold one value per column; residual and z lie as C does. Null: none.
template <class SC, class A = acc_t<SC>>
struct Epilogue {
  const A *bias = nullptr, *scale = nullptr;
  Fused fused;
  const SC* residual = nullptr;
  SC* z = nullptr;

  bool any() const { return bias || scale || fused.activates || residual || z; }

  // Columns [column, column + width) of `height` rows, the first of which starts at c + start.
  void apply(const A* sums, index_t lds, int height, index_t width, index_t column, SC* c, index_t ldc,
             index_t start) const;

 private:
  template <class F>
  __attribute__((noinline)) void finish(const A* sums, index_t lds, int height, index_t width, index_t column, SC* c,
                                        index_t ldc, index_t at) const {
    constexpr int L = kLanes<A>;
    for (index_t v = 0; v < width; v += L) {
      int n = int(std::min<index_t>(L, width - v));
      Vec<A> s = scale ? load_n(scale + column + v, n) : splat(A(1)),
             b = bias ? load_n(bias + column + v, n) : Vec<A>{};
      auto rows = [&](auto read, auto write) {
        for (int m = 0; m < height; ++m) {
          index_t i = at + m * ldc + v;
          Vec<A> x = load(sums + m * lds + v) * s + b;
          if (z) write(z + i, x);
          x = F::value(x);
          if (residual) x = x + read(residual + i);
          write(c + i, x);
        }
      };
      if (n == L) rows([](auto* p) { return load(p); }, [](auto* p, Vec<A> x) { store(p, x); });
      else rows([n](auto* p) { return load_n(p, n); }, [n](auto* p, Vec<A> x) { store_n(p, x, n); });
    }
  }
};

template <class SC, class A>
void Epilogue<SC, A>::apply(const A* sums, index_t lds, int height, index_t width, index_t column, SC* c, index_t ldc,
                            index_t start) const {
  for_fused(fused, [&]<class F>() { finish<F>(sums, lds, height, width, column, c, ldc, start + column); });
}

}  // namespace seqkern::SEQKERN_ISA
