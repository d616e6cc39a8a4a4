// LSTM on the CPU: the cell for layer_forward.h and layer_backward.h.
#include "layer_backward.h"
#include "lstm_cell.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class A>
SEQKERN_INLINE LstmPeephole<Vec<A>> load_peephole(const void* peephole, index_t hidden, index_t u, int lanes) {
  auto p = static_cast<const A*>(peephole) + u;
  return {load_n(p, lanes), load_n(p + hidden, lanes), load_n(p + 2 * hidden, lanes)};
}

template <class T>
struct LstmForwardCell {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kGates = 4, kLate = 0, kFolded = 4;
  static constexpr bool kProjects = true;
  const RecurrentForward& p;

  void take(Job&) {}
  template <class At>
  SEQKERN_INLINE V operator()(At at, const V (&sum)[4], const A* h, index_t block) const {
    index_t H = p.hidden_size, row = at.t * p.batch + at.n;
    LstmGates<V> a{sum[0] + load(h), sum[1] + load(h + block), sum[2] + load(h + 2 * block),
                   sum[3] + load(h + 3 * block)};
    A* state = static_cast<A*>(p.c_n) + at.n * H + at.u;
    V c = load_n(state, at.lanes), out;
    if (p.peephole) {
      auto peephole = load_peephole<A>(p.peephole, H, at.u, at.lanes);
      out = lstm_cell(a, c, &peephole);
    } else {
      out = lstm_cell<V>(a, c, nullptr);
    }
    store_n(state, c, at.lanes);
    if (p.gates) {
      A* g = static_cast<A*>(p.gates) + row * 4 * H + at.u;
      store_n(g, a.i, at.lanes);
      store_n(g + H, a.f, at.lanes);
      store_n(g + 2 * H, a.g, at.lanes);
      store_n(g + 3 * H, a.o, at.lanes);
      store_n(static_cast<A*>(p.cells) + row * H + at.u, c, at.lanes);
    }
    return out;
  }
};

template <class T>
struct LstmBackwardCell {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kGates = 4, kSums = 4, kLate = 0;
  static constexpr bool kProjects = true;
  const RecurrentBackward& p;
  A* dcell = nullptr;      // [N, H], running
  A* dpeephole = nullptr;  // [3, H]

  explicit LstmBackwardCell(const RecurrentBackward& params) : p(params) {}
  void take(Job& job) {
    dcell = job.take<A>(p.batch * p.hidden_size);
    if (p.peephole) {
      dpeephole = job.take<A>(3 * p.hidden_size);
      std::fill_n(dpeephole, 3 * p.hidden_size, A{});
    }
  }
  void start(index_t n, index_t u, int lanes) const {
    index_t i = n * p.hidden_size + u;
    store_n(dcell + i, load_or_zero(static_cast<const A*>(p.dc_n), i, lanes), lanes);
  }
  void finish(index_t begin, index_t end) const {
    index_t H = p.hidden_size;
    if (p.dc0)
      for (index_t n = 0; n < p.batch; ++n)
        std::copy(dcell + n * H + begin, dcell + n * H + end, static_cast<A*>(p.dc0) + n * H + begin);
    if (p.dpeephole)
      for (int g = 0; g < 3; ++g)
        std::copy(dpeephole + g * H + begin, dpeephole + g * H + end, static_cast<A*>(p.dpeephole) + g * H + begin);
  }

  template <class At>
  SEQKERN_INLINE index_t offset(At at) const {
    return (at.t * p.batch + at.n) * p.hidden_size + at.u;
  }

  // h before the projection
  template <class At>
  SEQKERN_INLINE V output(At at) const {
    V o = load_n(static_cast<const A*>(p.gates) + gate_offset(at, 3), at.lanes);
    return o * tanh(load_n(static_cast<const A*>(p.cells) + offset(at), at.lanes));
  }
  template <class At>
  SEQKERN_INLINE index_t gate_offset(At at, int g) const {
    return ((at.t * p.batch + at.n) * 4 + g) * p.hidden_size + at.u;
  }

  template <class At>
  SEQKERN_INLINE V previous_cell(At at) const {
    index_t step = p.batch * p.hidden_size, length = p.lengths ? p.lengths[at.n] : p.seq_len;
    bool first = p.reverse ? at.t + 1 >= length : at.t == 0;
    if (first) return load_or_zero(static_cast<const A*>(p.c0), at.n * p.hidden_size + at.u, at.lanes);
    return load_n(static_cast<const A*>(p.cells) + offset(at) + (p.reverse ? step : -step), at.lanes);
  }

  template <class At>
  SEQKERN_INLINE V operator()(At at, V dh, V (&d)[4]) const {
    auto gates = static_cast<const A*>(p.gates);
    LstmGates<V> s{load_n(gates + gate_offset(at, 0), at.lanes), load_n(gates + gate_offset(at, 1), at.lanes),
                   load_n(gates + gate_offset(at, 2), at.lanes), load_n(gates + gate_offset(at, 3), at.lanes)};
    V c = load_n(static_cast<const A*>(p.cells) + offset(at), at.lanes), c_prev = previous_cell(at);
    A* running = dcell + at.n * p.hidden_size + at.u;
    V dc = load_n(running, at.lanes);
    LstmGates<V> g;
    if (p.peephole) {
      auto peephole = load_peephole<A>(p.peephole, p.hidden_size, at.u, at.lanes);
      g = lstm_cell_backward(dh, dc, s, c, c_prev, &peephole);
      add(0, at, g.i * c_prev);
      add(1, at, g.f * c_prev);
      add(2, at, g.o * c);
    } else {
      g = lstm_cell_backward<V>(dh, dc, s, c, c_prev, nullptr);
    }
    store_n(running, dc, at.lanes);
    d[0] = g.i, d[1] = g.f, d[2] = g.g, d[3] = g.o;
    return V{};
  }
  template <class At>
  SEQKERN_INLINE void add(int row, At at, V v) const {
    A* to = dpeephole + row * p.hidden_size + at.u;
    store_n(to, load_n(to, at.lanes) + v, at.lanes);
  }
};

}  // namespace

void lstm_forward(const RecurrentForward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { ForwardLayer<T, W, LstmForwardCell<T>>(p).run(); });
}
void lstm_backward(const RecurrentBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { BackwardLayer<T, W, LstmBackwardCell<T>>(p).run(); });
}

}  // namespace seqkern::SEQKERN_ISA
