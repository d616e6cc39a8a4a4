// The walk of layer_forward_mma.cuh for weights that no cluster can hold: a team of blocks that run at the same time
// has them in its registers, and its blocks send each other their words through global memory.
//
// A block owns kTiles tiles of units, each of its warps a part of their depth. So a warp needs only its part of the
// state, and every lane takes the words that are its own operands straight from the mail into its registers: no word
// is read twice, nor stored on the way. The parts' sums meet in shared memory, the block's only barrier in a step;
// then a warp has the cells of a tile. A team carries kRows batch rows.
#pragma once
#include "layer_cells.cuh"

namespace seqkern::cuda {

inline constexpr int kTeamWarps = 8, kAtOnce = 8;  // kAtOnce: steps of depth in a turn

struct TeamArguments {
  RecurrentForward p;
  const float* gate_sums;  // x W_ih' + biases, [T, N, G*H]
  const Factor* weights;   // packed
  FlaggedWord* mail;       // [teams, 2, words of a state]; cleared before
  int team, steps;         // blocks of a team; steps of depth of a warp
  index_t first;           // batch row of the first team
};

// Words of a team's state.
constexpr index_t state_mail(index_t hidden) { return ceil_div(hidden, 16) * 32; }

template <class T, class Cell, int kTiles>
struct TeamWalk {
  using Cells = LaneCells<T, Cell>;
  static constexpr int kCells = Cells::kCells, kUnits = Cells::kUnits;
  static constexpr int kHeld = 32 / kTiles;  // steps of depth whose weights are in registers
  static_assert(kTiles <= kTeamWarps && kHeld <= kAtOnce);

  struct alignas(16) Sums {
    float of[4];
  };
  struct Parts {  // of all warps
    Sums sums[kTiles][kTeamWarps][32];
  };
  const TeamArguments& a;
  const RecurrentForward& p;
  Cells cells;
  int rank, length;
  index_t team, tile, n, unit;  // of the cells of this lane
  bool finishes;                // this warp has cells
  Parts* parts;                 // of even and odd steps
  Factor* chip;                 // [steps after kHeld, kTiles, kTeamWarps, 32]
  float h[kCells], c[kCells];
  std::uint32_t held[kHeld][kTiles][4];

  static std::size_t shared_bytes(int steps) {
    return 2 * sizeof(Parts) +
           std::size_t(steps > kHeld ? steps - kHeld : 0) * kTiles * kTeamWarps * 32 * sizeof(Factor);
  }

  SEQKERN_INLINE TeamWalk(const TeamArguments& arguments, const Cell& cell, unsigned char* shared)
      : a(arguments), p(a.p), cells{a.p, a.gate_sums, cell} {
    rank = int(blockIdx.x % unsigned(a.team)), team = index_t(blockIdx.x / unsigned(a.team));
    tile = index_t(rank) * kTiles + warp_id();
    n = a.first + team * kRows + lane_row();
    unit = tile * kUnits + lane_quad() * kCells;
    finishes = warp_id() < kTiles && tile * kUnits < p.hidden_size;
    length = n < p.batch ? int(p.lengths ? p.lengths[n] : p.seq_len) : 0;
    parts = reinterpret_cast<Parts*>(shared);
    chip = reinterpret_cast<Factor*>(parts + 2) + threadIdx.x;
  }

  // Of state s in the mail, which is 0 before.
  static SEQKERN_INLINE std::uint32_t flag_of(index_t s) { return std::uint32_t(s) + 1; }
  SEQKERN_INLINE index_t step_at(int i) const { return index_t(warp_id()) * a.steps + i; }
  SEQKERN_INLINE FlaggedWord* mail(index_t s) const {
    return a.mail + (team * 2 + (s & 1)) * state_mail(p.hidden_size);
  }

  SEQKERN_INLINE void run() {
    start();
    for (index_t s = 0; s < p.seq_len; ++s) step(s, p.reverse ? p.seq_len - 1 - s : s);
    if (!finishes) return;
    cells.for_cells(n, unit, [&](int i, bool here) {
      if (!here) return;
      store(static_cast<T*>(p.h_n) + n * p.hidden_size + unit + i, h[i]);
      if (Cell::kCarries) static_cast<float*>(p.c_n)[n * p.hidden_size + unit + i] = c[i];
    });
  }

  SEQKERN_INLINE void start() {
    auto factor = [&](int i, int j, bool& there) {
      index_t of_tile = depth_groups(p.hidden_size) * kGroup, step = step_at(i), at = index_t(rank) * kTiles + j;
      there = i < a.steps && step < of_tile && at * kUnits < p.hidden_size;
      return there ? a.weights + (at * of_tile + step) * 32 + lane_id() : a.weights;
    };
    bool there;
    SEQKERN_UNROLL
    for (int i = 0; i < kHeld; ++i) SEQKERN_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const Factor* from = factor(i, j, there);
      load(held[i][j], from);
      for (auto& word : held[i][j]) word = there ? word : 0;
    }
    for (int i = kHeld; i < a.steps; ++i)
      for (int j = 0; j < kTiles; ++j) {
        const Factor* from = factor(i, j, there);
        copy_async<16>(chip_of(i, j), from, there);
      }
    cells.for_cells(n, unit, [&](int i, bool here) {
      here = here && finishes;
      h[i] = here ? load_or_zero(static_cast<const T*>(p.h0), n * p.hidden_size + unit + i) : 0.0f;
      c[i] =
          here && Cell::kCarries ? load_or_zero(static_cast<const float*>(p.c0), n * p.hidden_size + unit + i) : 0.0f;
    });
    copies_arrived();
    if (finishes) send(0, h);
  }
  SEQKERN_INLINE Factor* chip_of(int i, int j) const { return chip + ((i - kHeld) * kTiles + j) * kTeamWarps * 32; }

  SEQKERN_INLINE void step(index_t s, index_t t) {
    typename Cells::Inputs in{};
    if (finishes) cells.read(in, t, n, unit);
    float sums[kTiles][4] = {};
    gather(s, 0, sums, [&](int i, int j, std::uint32_t (&left)[4]) {
      if (i < kHeld) SEQKERN_UNROLL
      for (int e = 0; e < 4; ++e) left[e] = held[i < kHeld ? i : 0][j][e];
      else load(left, chip_of(i, j));
    });
    for (int first = kAtOnce; first < a.steps; first += kAtOnce)
      gather(s, first, sums, [&](int i, int j, std::uint32_t (&left)[4]) { load(left, chip_of(first + i, j)); });
    Parts& now = parts[s & 1];  // those of the step before are read before the barrier of this one
    SEQKERN_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      Sums sum;
      SEQKERN_UNROLL
      for (int e = 0; e < 4; ++e) sum.of[e] = sums[j][e];
      now.sums[j][warp_id()][lane_id()] = sum;
    }
    sync_block();
    if (finishes) finish(in, now.sums[warp_id()], s, t);
  }

  // sums += weights of steps [first, first + kAtOnce) times their words of state s; weight(i, tile, its factor).
  template <class Weight>
  SEQKERN_INLINE void gather(index_t s, int first, float (&sums)[kTiles][4], Weight weight) const {
    FlaggedWord words[kAtOnce];
    await(words, s, first);
    SEQKERN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i >= a.steps) continue;
      std::uint32_t right[2] = {std::uint32_t(words[i].halves[0]), std::uint32_t(words[i].halves[1])};
      SEQKERN_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        std::uint32_t left[4];
        weight(i, j, left);
        multiply<T>(sums[j], left, right);
      }
    }
  }
  // Until the words are there.
  SEQKERN_INLINE void await(FlaggedWord (&words)[kAtOnce], index_t s, int first) const {
    std::uint32_t flag = flag_of(s);
    const FlaggedWord* from = mail(s) + step_at(first) * 32 + lane_id();
    SEQKERN_UNROLL
    for (int i = 0; i < kAtOnce; ++i) expect(words[i], flag, first + i);
    for (;;) {
      bool all = true;
      SEQKERN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) load_unless(arrived(words[i], flag), words[i], from + i * 32);
      SEQKERN_UNROLL
      for (int i = 0; i < kAtOnce; ++i) all = arrived(words[i], flag) && all;
      if (!ballot(!all)) return;
      let_others_run();
    }
  }
  // As it is before the first look: there, where it is never sent.
  SEQKERN_INLINE void expect(FlaggedWord& word, std::uint32_t flag, int i) const {
    index_t at = step_at(i) * 4 + lane_id() % 4;
    bool sent = i < a.steps && at < ceil_div(p.hidden_size, kUnits) * kCells;
    word.halves[0] = word.halves[1] = sent ? 0 : std::uint64_t(flag) << 32;
  }

  SEQKERN_INLINE void finish(typename Cells::Inputs& in, const Sums (&of)[kTeamWarps][32], index_t s, index_t t) {
    float sums[4], quad[4];
    SEQKERN_UNROLL
    for (int e = 0; e < 4; ++e) {
      auto part = [&](int w) { return of[w][lane_id()].of[e]; };
      sums[e] = part(0) + part(1) + (part(2) + part(3)) + (part(4) + part(5) + (part(6) + part(7)));
    }
    to_quad(sums, quad);
    SEQKERN_UNROLL
    for (int i = 0; i < kCells; ++i) in.h[i] = h[i], in.c[i] = c[i];
    bool on = t < length;
    typename Cells::Outputs out;
    cells.advance(in, quad, on, unit, out);
    if (s + 1 < p.seq_len) send(s + 1, out.next);
    cells.keep(out, on, t, n, unit);
    SEQKERN_UNROLL
    for (int i = 0; i < kCells; ++i) {
      h[i] = out.next[i];
      if (Cell::kCarries && on) c[i] = in.c[i];
    }
  }
  SEQKERN_INLINE void send(index_t s, const float (&v)[kCells]) const {
    std::uint64_t word = Cells::word(v);
    index_t at = Cells::word_at(tile);
    if (kCells == 4 || lane_quad() == 0)
      store_flagged(mail(s) + at / 4 * 32 + lane_row() * 4 + at % 4, word, flag_of(s));
  }
};

template <class T, class Cell, int kTiles>
__global__ void __launch_bounds__(32 * kTeamWarps, 1)
    layer_team_kernel(const __grid_constant__ TeamArguments a, const __grid_constant__ Cell cell) {
  SEQKERN_DYNAMIC_SHARED(shared);
  TeamWalk<T, Cell, kTiles>(a, cell, shared).run();
}

// The walk with kTiles tiles a block; only where `always`, or all teams run at once. False where it does not apply.
// Weights are packed.
template <class T, class Cell, int kTiles>
bool team_steps(const RecurrentForward& p, const float* gate_sums, const Factor* weights, FlaggedWord* mail,
                const Cell& cell, bool always, cudaStream_t stream) {
  using Walk = TeamWalk<T, Cell, kTiles>;
  auto kernel = layer_team_kernel<T, Cell, kTiles>;
  auto address = reinterpret_cast<const void*>(kernel);
  int team = int(ceil_div(p.hidden_size, index_t(kTiles) * Walk::kUnits));
  int steps = int(ceil_div(ceil_div(p.hidden_size, 16), index_t(kTeamWarps)));
  std::size_t bytes = Walk::shared_bytes(steps);
  if (bytes > std::size_t(limits(address).max_shared)) return false;
  index_t teams = ceil_div(p.batch, kRows), together = blocks_together(address, 32 * kTeamWarps, bytes) / team;
  if (!together || (!always && together < teams)) return false;
  TeamArguments a{p, gate_sums, weights, mail, team, steps, 0};
  for (; teams > 0; teams -= together, a.first += together * kRows) {
    index_t now = min_of(teams, together);
    clear(mail, std::size_t(now * 2 * state_mail(p.hidden_size)) * sizeof(FlaggedWord), stream);
    Launch l{dim3(unsigned(now) * unsigned(team)), dim3(32 * kTeamWarps), bytes};
    l.stream = stream, l.together = true;
    launch(l, kernel, a, cell);
  }
  return true;
}

}  // namespace seqkern::cuda
