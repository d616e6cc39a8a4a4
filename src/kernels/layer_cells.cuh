// What a lane of the forward walks on tensor cores does once it has the sums of its quad for a batch row: the gates of
// a unit, or four units where there is one gate.
#pragma once
#include "layer_mma.cuh"

namespace seqkern::cuda {

template <class T, class Cell>
struct LaneCells {
  static constexpr int G = Cell::kGates, kSlots = G == 1 ? 1 : 4;  // rows of a quad for a unit
  static constexpr int kCells = 4 / kSlots, kUnits = 4 * kCells;   // units of a lane and of a tile; words of a tile

  struct Inputs {  // read ahead of the sums
    float x[kCells][G], h[kCells], c[kCells];
    typename Cell::Constants constants[kCells];
  };
  struct Outputs {
    float value[kCells], next[kCells];
    typename Cell::Kept kept[kCells];
  };
  template <class W>
  struct Rows {  // W_hh, by rows of quads
    const W* data;
    index_t H;
    SEQKERN_INLINE W operator()(index_t tile, int r, index_t k) const {
      index_t row = tile * 16 + quad_row(r), unit = row / kSlots, gate = row % kSlots;
      return gate < G && unit < H && k < H ? data[(gate * H + unit) * H + k] : W{};
    }
  };

  const RecurrentForward& p;
  const float* gate_sums;  // x W_ih' + biases, [T, N, G*H]
  const Cell& cell;

  // The units from u on of batch row n; f(c, whether the unit exists).
  template <class F>
  SEQKERN_INLINE void for_cells(index_t n, index_t u, F f) const {
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) f(c, n < p.batch && u + c < p.hidden_size);
  }
  // At time t; but for h and c.
  SEQKERN_INLINE void read(Inputs& in, index_t t, index_t n, index_t u) const {
    for_cells(n, u, [&](int c, bool here) {
      SEQKERN_UNROLL
      for (int g = 0; g < G; ++g)
        in.x[c][g] = here ? gate_sums[((t * p.batch + n) * G + g) * p.hidden_size + u + c] : 0.0f;
      in.constants[c] = cell.constants(here ? u + c : 0);
    });
  }
  // A row that is over, not `on`, keeps its state.
  SEQKERN_INLINE void advance(Inputs& in, const float (&quad)[4], bool on, index_t u, Outputs& out) const {
    SEQKERN_UNROLL
    for (int c = 0; c < kCells; ++c) {
      float sum[G];
      SEQKERN_UNROLL
      for (int g = 0; g < G; ++g) sum[g] = quad[c * kSlots + g];
      out.value[c] = cell(in.x[c], sum, in.h[c], in.constants[c], in.c[c], out.kept[c]);
      out.next[c] = on && u + c < p.hidden_size ? rounded<T>(out.value[c]) : in.h[c];
    }
  }
  // What is stored of a step.
  SEQKERN_INLINE void keep(const Outputs& out, bool on, index_t t, index_t n, index_t u) const {
    for_cells(n, u, [&](int c, bool here) {
      if (!here) return;
      if (p.y) store(static_cast<T*>(p.y) + (t * p.batch + n) * p.hidden_size + u + c, on ? out.value[c] : 0.0f);
      cell.keep({t, n, u + c}, out.kept[c], on);
    });
  }

  // The word of four units this lane's are in; quad by quad of a tile, or one of all four quads.
  static SEQKERN_INLINE std::uint64_t word(const float (&v)[kCells]) {
    if constexpr (kCells == 4) {
      return word_of<T>(v);
    } else {
      int quad = lane_quad();
      std::uint32_t one = pack<T>(v[0], 0.0f), other = shuffle_xor(one, 8);
      std::uint32_t two = quad & 1 ? other | one << 16 : one | other << 16, rest = shuffle_xor(two, 16);
      return quad & 2 ? rest | std::uint64_t(two) << 32 : two | std::uint64_t(rest) << 32;
    }
  }
  static SEQKERN_INLINE index_t word_at(index_t tile) { return tile * kCells + (kCells == 4 ? lane_quad() : 0); }
};

}  // namespace seqkern::cuda
