// Rotary position embedding: one pass over the rows, which the threads share.
#include "seqkern/rope.h"

#include "passes.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
void rotate(const Rope& p) {
  using A = acc_t<T>;
  A sign = p.inverse ? A(-1) : A(1);
  index_t half = p.rotary_dim / 2, width = p.interleaved ? p.rotary_dim : half;
  for_rows(p.rows, p.dim, [&](index_t r) {
    index_t t = p.table_row ? p.table_row[r] : r % p.table_rows;
    auto x = static_cast<const T*>(p.x) + r * p.dim;
    auto y = static_cast<T*>(p.y) + r * p.dim;
    auto cos = static_cast<const A*>(p.cos) + t * width, sin = static_cast<const A*>(p.sin) + t * width;
    if (p.interleaved) {
      for_columns<A>(width, [&](index_t j, auto n) {
        Vec<A> v = load_n(x + j, n);
        store_n(y + j, v * load_n(cos + j, n) + swap_runs<1>(v) * (sign * load_n(sin + j, n)), n);
      });
    } else {
      for_columns<A>(half, [&](index_t j, auto n) {
        Vec<A> a = load_n(x + j, n), b = load_n(x + half + j, n), c = load_n(cos + j, n), s = sign * load_n(sin + j, n);
        store_n(y + j, a * c - b * s, n);
        store_n(y + half + j, b * c + a * s, n);
      });
    }
    std::copy(x + p.rotary_dim, x + p.dim, y + p.rotary_dim);
  });
}

}  // namespace

void rope(const Rope& p) {
  for_type(p.dtype, [&]<class T>() { rotate<T>(p); });
}

}  // namespace seqkern::SEQKERN_ISA
