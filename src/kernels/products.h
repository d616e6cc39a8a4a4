// The products that the kernels share, compiled once per instruction set: extern here, made in products_cpu.cpp.
#pragma once
#include "dot.h"
#include "gemm.h"
#include "row_product.h"

#ifndef SEQKERN_ONCE
#define SEQKERN_ONCE extern template
#endif

namespace seqkern::SEQKERN_ISA {

#define SEQKERN_DOT(Split, Stream, S, W)                                                                              \
  SEQKERN_ONCE void dot_blocks<Split, Stream>(index_t, const S*, index_t, const W*, index_t, int, index_t, acc_t<W>*, \
                                              index_t)
#define SEQKERN_PRODUCTS(S, A)                                                                        \
  SEQKERN_DOT(false, false, S, S);                                                                    \
  SEQKERN_ONCE void row_product(index_t, const A*, const S*, index_t, index_t, index_t, A*, index_t); \
  SEQKERN_ONCE void pack_rows(const S*, index_t, int, index_t, A*);                                   \
  SEQKERN_ONCE void pack_panel(const S*, index_t, index_t, index_t, A*);                              \
  SEQKERN_ONCE void pack_panel_transposed(const S*, index_t, index_t, index_t, A*);                   \
  SEQKERN_ONCE void Epilogue<S>::apply(const A*, index_t, int, index_t, index_t, S*, index_t, index_t) const
#define SEQKERN_PACK_TILES(Left, Along, S) \
  SEQKERN_ONCE void pack_tiles<Left, Along>(const S*, index_t, index_t, index_t, index_t, int, Half*)

SEQKERN_PRODUCTS(float, float);
SEQKERN_DOT(false, true, float, float);
SEQKERN_ONCE void panel_product(int, const float*, const float*, index_t, float*, index_t, bool);
SEQKERN_ONCE void Gemm<float, float, float>::run(Job&);
SEQKERN_PACK_TILES(true, true, float);
SEQKERN_PACK_TILES(true, false, float);
SEQKERN_PACK_TILES(false, true, float);
SEQKERN_PACK_TILES(false, false, float);

SEQKERN_PRODUCTS(bf16, float);
SEQKERN_DOT(false, false, float, bf16);
SEQKERN_DOT(true, false, float, bf16);
SEQKERN_DOT(true, true, float, bf16);
SEQKERN_DOT(false, true, bf16, bf16);
SEQKERN_ONCE void Gemm<float, bf16, float>::run(Job&);
SEQKERN_ONCE void Gemm<float, bf16, bf16>::run(Job&);
SEQKERN_PACK_TILES(true, true, bf16);
SEQKERN_PACK_TILES(false, true, bf16);
SEQKERN_PACK_TILES(false, false, bf16);

#ifndef SEQKERN_OTHERS
SEQKERN_PRODUCTS(double, double);
SEQKERN_DOT(false, true, double, double);
SEQKERN_ONCE void panel_product(int, const double*, const double*, index_t, double*, index_t, bool);
SEQKERN_ONCE void Gemm<double, double, double>::run(Job&);
#endif

#undef SEQKERN_DOT
#undef SEQKERN_PRODUCTS
#undef SEQKERN_PACK_TILES

}  // namespace seqkern::SEQKERN_ISA
