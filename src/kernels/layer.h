// What the forward and backward passes of a recurrent layer share: operands, gate weights, the plan.
//
// Two ways to multiply, chosen by the batch size alone so that chunks of a sequence equal the whole bit for
// bit: below kPackRows rows the weights are read where they lie (dot.h), from there on they are packed once
// per call and multiplied in register tiles (tile.h).
#pragma once
#include "cpu/thread_pool.h"
#include "dot.h"
#include "seqkern/recurrent.h"
#include "simd/math.h"
#include "tile.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kPackRows = 4;
inline bool packs(index_t batch) { return batch >= kPackRows; }

// Units that are computed together: one panel, or one register where weights are read in place.
template <class A>
index_t unit_block(index_t batch) {
  return packs(batch) ? kPanel<A> : kLanes<A>;
}

// The left factor of a product, [rows, depth], written unit by unit and read by every thread. Packed: blocks
// of rows, k-major. Otherwise: rows, split where W is bf16 (split_place), padded so that they do not
// share cache sets.
template <class A, class W = A>
struct Operand {
  index_t rows, depth;
  bool packed;
  A* data = nullptr;

  Operand(index_t rows_, index_t depth_) : rows(rows_), depth(depth_), packed(packs(rows_)) {}
  index_t stride() const { return round_up(depth, kDotStep<W> > 16 ? kDotStep<W> : 16) + 16; }
  index_t size() const { return packed ? rows * depth : rows * stride(); }
  RowBlocks blocks() const { return RowBlocks(rows); }
  void clear_gaps() const {
    if (!packed) std::memset(data, 0, std::size_t(size()) * sizeof(A));
  }

  // values k .. k+n of one row
  SEQKERN_INLINE void put(index_t row, index_t block_begin, int height, index_t k, Vec<A> v, int n) const {
    if (kDotParts<W> == 1 && !packed) return store_n(data + row * stride() + k, v, n);
    A flat[kLanes<A>];
    store(flat, v);
    if (!packed) {
      for (int j = 0; j < n; ++j) data[row * stride() + split_place<W>(k + j)] = flat[j];
      return;
    }
    A* out = data + block_begin * depth + k * height + (row - block_begin);
    if (n == kLanes<A>) {
#pragma GCC unroll 16
      for (int j = 0; j < kLanes<A>; ++j) out[j * height] = flat[j];
    } else {
      for (int j = 0; j < n; ++j) out[j * height] = flat[j];
    }
  }
};

// A weight [gates * units, depth]; its product with an operand gives [rows, gates, block] per block of units.
template <class A, class W>
struct GateWeight {
  const W* raw;
  index_t units, depth;
  int gates;
  index_t block;        // unit_block
  A* packed = nullptr;  // [blocks, gates, depth, panel]

  index_t blocks() const { return ceil_div(units, block); }
  index_t packed_size() const { return blocks() * gates * depth * kPanel<A>; }
  int width(index_t b) const { return int(units - b * block < block ? units - b * block : block); }
  const W* rows(index_t b, int gate) const { return raw + (gate * units + b * block) * depth; }
  A* panel(index_t b, int gate) const { return packed + (b * gates + gate) * depth * kPanel<A>; }

  void pack(Range own) const {
    for (index_t b = own.begin; b < own.end; ++b)
      for (int g = 0; g < gates; ++g) pack_panel_transposed(rows(b, g), depth, width(b), depth, panel(b, g));
  }

  // Gates [first, last) of block b: out[row][gate][block] over `count` rows from a packed row block ...
  SEQKERN_INLINE void packed_product(const A* a, int height, index_t b, int first, int last, A* out) const {
    for (int g = first; g < last; ++g)
      panel_product<A>(height, a, panel(b, g), depth, out + g * block, gates * block, false);
  }
  // ... or from rows in place, split where W is bf16.
  template <class S>
  SEQKERN_INLINE void dot(const S* a, index_t lda, index_t count, index_t b, int first, int last, A* out) const {
    for (int g = first; g < last; ++g)
      dot_blocks<(kDotParts<W> > 1)>(count, a, lda, rows(b, g), depth, width(b), depth, out + g * block, gates * block);
  }
};

// Whether row n takes part in step t.
inline bool active(const index_t* lengths, index_t n, index_t t) { return !lengths || t < lengths[n]; }

template <class T>
SEQKERN_INLINE Vec<acc_t<T>> load_or_zero(const T* p, index_t offset, int n) {
  return p ? load_n(p + offset, n) : Vec<acc_t<T>>{};
}

// Multiply-adds a thread should have before it is worth waking.
inline constexpr double kThreadGrain = 1.0e5;

}  // namespace seqkern::SEQKERN_ISA
