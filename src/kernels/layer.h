// What the forward and backward passes of a recurrent layer share: operands, gate weights, the plan.
//
// Two ways to multiply, chosen by the batch size alone so that chunks of a sequence equal the whole bit for
// bit: below kPackRows rows the weights are read where they lie (dot.h), from there on they are packed once
// per call and multiplied in register tiles (tile.h), or on the matrix unit where mode and sizes ask for it
// (tile_layer.h). What is made of a frozen weight is kept for the next call (cpu/frozen.h).
#pragma once
#include <type_traits>

#include "cpu/frozen.h"
#include "cpu/thread_pool.h"
#include "products.h"
#include "seqkern/recurrent.h"
#include "simd/math.h"
#include "tile_layer.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr index_t kPackRows = 4;
inline bool packs(index_t batch) { return batch >= kPackRows; }

// Units that are computed together: one panel, or one register where weights are read in place.
template <class A>
index_t unit_block(index_t batch) {
  return packs(batch) ? kPanel<A> : kLanes<A>;
}

// The left factor of a product, [rows, depth], written unit by unit and read by every thread. Packed: blocks of rows,
// k-major. Otherwise: rows, padded so that they do not share cache sets; of bf16 values (in_pairs, kDotPairs), or split
// where W is bf16 (split_place).
template <class A, class W = A>
struct Operand {
  index_t rows, depth;
  bool packed;
  A* data = nullptr;
  TileRows tiles;  // in use when it has parts

  Operand(index_t rows_, index_t depth_, int parts = 0, bool pairs = false)
      : rows(rows_),
        depth(depth_),
        packed(packs(rows_) && !parts),
        tiles{rows, depth, parts},
        few_pairs(pairs && !packs(rows_)) {}
  void take(Job& job) {
    data = job.take<A>(size());
    clear_gaps();
    if (tiles) tiles.take(job);
  }
  index_t stride() const { return round_up(depth, kDotStep<W> > 16 ? kDotStep<W> : 16) + 16; }
  index_t size() const { return packed ? rows * depth : rows * stride(); }
  RowBlocks blocks() const { return RowBlocks(rows); }
  bool in_pairs() const { return kDotPairs<W, bf16> && few_pairs; }
  bool split() const { return kDotParts<W> > 1 && !packed && !in_pairs() && !tiles; }
  bf16* pairs() const { return reinterpret_cast<bf16*>(data); }
  void clear_gaps() const {
    if (split()) std::memset(data, 0, std::size_t(size()) * sizeof(A));
  }

  // values k .. k+n of one row
  template <class Lanes>
  SEQKERN_INLINE void put(index_t row, index_t block_begin, int height, index_t k, Vec<A> v, Lanes n) const {
    if constexpr (std::is_same_v<A, float>) {
      if (tiles) tiles.put(row, k, v, n);
      if (in_pairs()) return store_n(pairs() + row * stride() + k, v, n);
    }
    if (!packed && !split()) return store_n(data + row * stride() + k, v, n);
    if constexpr (std::is_same_v<Lanes, int>) return put_each(row, block_begin, height, k, v, n);
    put_values(row, block_begin, height, k, v, n);
  }

  template <class Lanes>
  SEQKERN_INLINE void put_values(index_t row, index_t block_begin, int height, index_t k, Vec<A> v, Lanes n) const {
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
  // Less than a register: value by value, out of line because it is as much code as all of a cell.
  __attribute__((noinline)) void put_each(index_t row, index_t block_begin, int height, index_t k, Vec<A> v,
                                          int n) const {
    put_values(row, block_begin, height, k, v, n);
  }

 private:
  bool few_pairs;
};

inline constexpr char kIsa{};  // its address names the instruction set that packed a form

// A weight [gates * units, depth]; its product with an operand gives [rows, gates, block] per block of units.
template <class A, class W>
struct GateWeight {
  const W* raw;
  index_t units, depth;
  int gates;
  index_t block;         // unit_block
  FrozenWeight* frozen;  // of those weights, or null
  A* packed = nullptr;   // [blocks, gates, depth, panel], of one block where it is passing
  bool passing = false;  // met once: every block is packed when it is met, into the same place in L2
  TilePanels tiles{};    // instead, when it has parts
  W* stream = nullptr;   // instead, for few rows: take_stream
  FrozenWeight::Form* kept = nullptr;

  void take(Job& job, int parts) {
    index_t all = blocks() * gates;
    tiles.depth = depth, tiles.parts = parts;
    if (parts) tiles.place(room(job, FrozenWeight::tiles + parts - 1, tiles.bytes(all)), all);
    else packed = static_cast<A*>(room(job, FrozenWeight::panels, std::size_t(blocks() * block_size()) * sizeof(A)));
  }
  void take_passing(Job& job, int threads) {
    passing = true;
    packed = job.take<A>(threads * block_size());
  }
  // As a thread sees it.
  GateWeight of(int rank) const {
    GateWeight own = *this;
    if (passing) own.packed += rank * block_size();
    return own;
  }
  // A copy as the walk reads it (lay_out_stream), for weights that are read many times over.
  void take_stream(Job& job) {
    std::size_t count = std::size_t(blocks() * gates * stream_size<W>(depth));
    stream = static_cast<W*>(room(job, FrozenWeight::stream, count * sizeof(W)));
  }
  index_t blocks() const { return ceil_div(units, block); }
  index_t block_size() const { return gates * depth * kPanel<A>; }
  int width(index_t b) const { return int(units - b * block < block ? units - b * block : block); }
  const W* rows(index_t b, int gate) const { return raw + (gate * units + b * block) * depth; }
  W* stream_of(index_t b, int gate) const { return stream + (b * gates + gate) * stream_size<W>(depth); }
  A* panel(index_t b, int gate) const { return packed + ((passing ? 0 : b) * gates + gate) * depth * kPanel<A>; }

  // What was taken, of own blocks; nothing where a call before has done it.
  void pack(Range own) const {
    if (passing || (kept && kept->ready)) return;
    for (index_t b = own.begin; b < own.end; ++b)
      if (packed || tiles) pack_block(b, 0, gates);
      else if (stream)
        for (int g = 0; g < gates; ++g) lay_out_stream(rows(b, g), depth, width(b), depth, stream_of(b, g));
  }
  // After a call in which every block was packed.
  void keep() const {
    if (kept) kept->ready = true;
  }
  void meet(index_t b, int first, int last) const {
    if (passing) pack_block(b, first, last);
  }

  // Gates [first, last) of block b: out[row][gate][block] over `count` rows from a packed row block ...
  SEQKERN_INLINE void packed_product(const A* a, int height, index_t b, int first, int last, A* out) const {
    for (int g = first; g < last; ++g)
      panel_product<A>(height, a, panel(b, g), depth, out + g * block, gates * block, false);
  }
  // ... from a panel of rows on the matrix unit (`raw`: those rows as they are) ...
  template <class S>
  void tile_product(const TileRows& a, index_t panel, bool wide, const S* raw, index_t lda, index_t b, int first,
                    int last, A* out) const {
    index_t height = std::min(kTilePanel, a.rows - panel * kTilePanel);
    if constexpr (std::is_same_v<A, float>)
      for (int g = first; g < last; ++g)
        layer_product(a, panel, height, wide, tiles, b * gates + g, width(b), out + g * block, gates * block,
                      [&](index_t m, index_t j) {
                        A sum;
                        dot_product(1, raw + m * lda, lda, rows(b, g) + j * depth, depth, 1, depth, &sum, 1);
                        return sum;
                      });
  }
  // ... or from rows in place, split where W is bf16. Many rows: each gate is laid out as a stream in `scratch` first.
  template <class S>
  SEQKERN_INLINE void dot(const S* a, index_t lda, index_t count, index_t b, int first, int last, A* out,
                          W* scratch = nullptr) const {
    constexpr bool kSplit = kDotParts<W> > 1 && !kDotPairs<S, W>;
    for (int g = first; g < last; ++g) {
      W* laid_out = stream ? stream_of(b, g) : scratch;
      if (scratch) lay_out_stream(rows(b, g), depth, width(b), depth, scratch);
      if (laid_out)
        dot_blocks<kSplit, true>(count, a, lda, laid_out, 0, width(b), depth, out + g * block, gates * block);
      else dot_blocks<kSplit, false>(count, a, lda, rows(b, g), depth, width(b), depth, out + g * block, gates * block);
    }
  }

 private:
  void* room(Job& job, int kind, std::size_t bytes) {
    if (!frozen) return job.take<char>(index_t(bytes));
    kept = &frozen->form(kind, {&kIsa, gates, units, depth, bytes});
    return kept->memory;
  }
  void pack_block(index_t b, int first, int last) const {
    for (int g = first; g < last; ++g)
      if (tiles) tiles.pack<true>(b * gates + g, rows(b, g), depth, 1, width(b));
      else pack_panel_transposed(rows(b, g), depth, width(b), depth, panel(b, g));
  }
};

// Whether row n takes part in step t.
inline bool active(const index_t* lengths, index_t n, index_t t) { return !lengths || t < lengths[n]; }

template <class T>
SEQKERN_INLINE Vec<acc_t<T>> load_or_zero(const T* p, index_t offset, int n) {
  return p ? load_n(p + offset, n) : Vec<acc_t<T>>{};
}

// f(lanes) with what is left of a row at a register: a constant where the register is whole, because a masked store
// costs many times a plain one (Zen).
template <class A, class F>
SEQKERN_INLINE void with_lanes(index_t left, F f) {
  if (left >= kLanes<A>) f(std::integral_constant<int, kLanes<A>>());
  else f(int(left));
}

// Where a cell stands: row n of step t, units [u, u + lanes).
template <class Lanes>
struct Site {
  index_t t, n, u;
  Lanes lanes;
};

// Multiply-adds a thread should have before it is worth waking.
inline constexpr double kThreadGrain = 1.0e5;

// Threads that pay in a layer: all of them meet at the end of each step, which takes as long as so many multiply-adds.
inline int layer_threads(index_t steps, index_t batch, double step) {
  double meeting = packs(batch) ? 1.0e5 : 4.0e4;
  return std::min(threads_for(double(steps) * step, kThreadGrain), 1 + int(std::min(step / meeting, 1e6)));
}

}  // namespace seqkern::SEQKERN_ISA
