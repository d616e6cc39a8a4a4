// LSTM on the GPU: the cell for layer_forward.cuh and layer_backward.cuh.
#include "layer_backward.cuh"
#include "lstm_cell.h"

namespace seqkern::cuda {
namespace {

template <class A>
SEQKERN_INLINE LstmPeephole<A> load_peephole(const void* peephole, index_t hidden, index_t u) {
  auto p = static_cast<const A*>(peephole) + u;
  return {p[0], p[hidden], p[2 * hidden]};
}

template <class T>
struct LstmForwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 4, kLate = 0, kFolded = 4;
  static constexpr bool kCarries = true;
  struct Constants {
    LstmPeephole<A> peephole;
  };
  struct Kept {
    LstmGates<A> gates;
    A c;
  };
  RecurrentForward p;

  SEQKERN_INLINE Constants constants(index_t u) const {
    return p.peephole ? Constants{load_peephole<A>(p.peephole, p.hidden_size, u)} : Constants{};
  }
  SEQKERN_INLINE A operator()(const A (&x)[4], const A (&h)[4], A, const Constants& k, A& c, Kept& kept) const {
    LstmGates<A> a{x[0] + h[0], x[1] + h[1], x[2] + h[2], x[3] + h[3]};
    A out = p.peephole ? lstm_cell(a, c, &k.peephole) : lstm_cell<A>(a, c, nullptr);
    kept = {a, c};
    return out;
  }
  SEQKERN_INLINE void keep(Site at, const Kept& kept, bool on) const {
    if (!p.gates) return;
    index_t H = p.hidden_size, row = at.t * p.batch + at.n;
    A* g = static_cast<A*>(p.gates) + row * 4 * H + at.u;
    g[0] = on ? kept.gates.i : A(0);
    g[H] = on ? kept.gates.f : A(0);
    g[2 * H] = on ? kept.gates.g : A(0);
    g[3 * H] = on ? kept.gates.o : A(0);
    static_cast<A*>(p.cells)[row * H + at.u] = on ? kept.c : A(0);
  }
};

template <class T>
struct LstmBackwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 4, kSums = 4, kLate = 0;
  static constexpr bool kCarries = true;
  struct Saved {
    LstmGates<A> gates;
    A c, c_prev;
    LstmPeephole<A> peephole;
  };
  RecurrentBackward p;
  A* dcell;  // [N, H], running

  SEQKERN_INLINE index_t offset(Site at) const { return (at.t * p.batch + at.n) * p.hidden_size + at.u; }
  SEQKERN_INLINE A gate(Site at, int g) const {
    return static_cast<const A*>(p.gates)[((at.t * p.batch + at.n) * 4 + g) * p.hidden_size + at.u];
  }

  SEQKERN_INLINE void start(Site at) const {
    index_t i = at.n * p.hidden_size + at.u;
    dcell[i] = load_or_zero(static_cast<const A*>(p.dc_n), i);
  }
  SEQKERN_INLINE void finish(Site at) const {
    index_t i = at.n * p.hidden_size + at.u;
    if (p.dc0) static_cast<A*>(p.dc0)[i] = dcell[i];
  }
  // h before the projection
  SEQKERN_INLINE A output(Site at) const { return gate(at, 3) * tanh(static_cast<const A*>(p.cells)[offset(at)]); }

  SEQKERN_INLINE Saved read(Site at) const {
    Saved s{{gate(at, 0), gate(at, 1), gate(at, 2), gate(at, 3)},
            static_cast<const A*>(p.cells)[offset(at)],
            state_before<A>(p, p.c0, p.cells, p.hidden_size, at),
            {}};
    if (p.peephole) s.peephole = load_peephole<A>(p.peephole, p.hidden_size, at.u);
    return s;
  }
  SEQKERN_INLINE A operator()(const Saved& s, A dh, A& dc, A (&d)[4]) const {
    auto g = p.peephole ? lstm_cell_backward(dh, dc, s.gates, s.c, s.c_prev, &s.peephole)
                        : lstm_cell_backward<A>(dh, dc, s.gates, s.c, s.c_prev, nullptr);
    d[0] = g.i, d[1] = g.f, d[2] = g.g, d[3] = g.o;
    return A(0);
  }
  SEQKERN_INLINE A operator()(Site at, A dh, A (&d)[4]) const {
    return (*this)(read(at), dh, dcell[at.n * p.hidden_size + at.u], d);
  }
};

// What a peephole's gradient sums up: that of its gate times the cell state it saw.
template <class A>
struct PeepholeTerm {
  RecurrentBackward p;
  const A* dgates;
  int gate;
  SEQKERN_INLINE A operator()(index_t row, index_t u) const {
    Site at{row / p.batch, row % p.batch, u};
    A d = dgates[(row * 4 + gate) * p.hidden_size + u];
    if (!active(p.lengths, at.n, at.t)) return A(0);
    if (gate == 3) return d * static_cast<const A*>(p.cells)[row * p.hidden_size + u];
    return d * state_before<A>(p, p.c0, p.cells, p.hidden_size, at);
  }
};

std::size_t forward(const RecurrentForward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using Cell = LstmForwardCell<T>;
    bytes = layer_forward<T, W, Cell>(p, workspace, stream, [&](Pieces&) { return Cell{p}; });
  });
  return bytes;
}

std::size_t backward(const RecurrentBackward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using A = acc_t<T>;
    using Cell = LstmBackwardCell<T>;
    index_t H = p.hidden_size;
    const A* dgates = nullptr;
    bytes = layer_backward<T, W, Cell>(
        p, workspace, stream, [&](Pieces& pieces) { return Cell{p, pieces.take<A>(p.batch * H)}; }, &dgates);
    if (!workspace || !p.dpeephole) return;
    for (int i = 0; i < 3; ++i)
      column_sums(p.seq_len * p.batch, H, PeepholeTerm<A>{p, dgates, i == 2 ? 3 : i},
                  static_cast<A*>(p.dpeephole) + i * H, static_cast<cudaStream_t>(stream));
  });
  return bytes;
}

}  // namespace

std::size_t lstm_forward_workspace(const RecurrentForward& p) { return forward(p, nullptr, nullptr); }
std::size_t lstm_backward_workspace(const RecurrentBackward& p) { return backward(p, nullptr, nullptr); }
void lstm_forward(const RecurrentForward& p, void* workspace, void* stream) { forward(p, workspace, stream); }
void lstm_backward(const RecurrentBackward& p, void* workspace, void* stream) { backward(p, workspace, stream); }

}  // namespace seqkern::cuda
