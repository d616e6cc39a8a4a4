// GRU on the CPU: the cells for layer_forward.h and layer_backward.h, with the reset gate after the recurrent
// product (torch, cuDNN) and before it (ONNX's default), which costs a second product in the step.
#include "layer_backward.h"

#include "gru_cell.h"

namespace seqkern::SEQKERN_ISA {
namespace {

// ---- forward ----

template <class T>
struct GruForwardBase {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kGates = 3;
  static constexpr bool kProjects = false;
  const RecurrentForward& p;

  template <class At>
  SEQKERN_INLINE V h_prev(At at) const {
    return load_n(static_cast<const T*>(p.h_n) + at.n * p.hidden_size + at.u, at.lanes);
  }
  template <class At>
  SEQKERN_INLINE void save(At at, int gate, V v) const {
    if (!p.gates) return;
    index_t at_gate = ((at.t * p.batch + at.n) * 3 + gate) * p.hidden_size + at.u;
    store_n(static_cast<A*>(p.gates) + at_gate, v, at.lanes);
  }
};

template <class T>
struct GruForwardCell : GruForwardBase<T> {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kLate = 0, kFolded = 2;
  using GruForwardBase<T>::p;

  explicit GruForwardCell(const RecurrentForward& params) : GruForwardBase<T>{params} {}
  void take(Job&) {}
  template <class At>
  SEQKERN_INLINE V operator()(At at, const V (&sum)[3], const A* h, index_t block) const {
    index_t H = p.hidden_size;
    V q = load(h + 2 * block) + load_or_zero(static_cast<const A*>(p.bias_hh), 2 * H + at.u, at.lanes);
    V r = gate(sum[0] + load(h)), z = gate(sum[1] + load(h + block)), n = tanh(sum[2] + r * q);
    this->save(at, 0, r);
    this->save(at, 1, z);
    this->save(at, 2, n);
    if (p.hidden_n) store_n(static_cast<A*>(p.hidden_n) + (at.t * p.batch + at.n) * H + at.u, q, at.lanes);
    return gru_blend(z, n, this->h_prev(at));
  }
};

template <class T>
struct GruResetFirstForwardCell : GruForwardBase<T> {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kLate = 1, kFolded = 3;
  using GruForwardBase<T>::p;
  A* update = nullptr;  // z of the step, [N, H]

  explicit GruResetFirstForwardCell(const RecurrentForward& params) : GruForwardBase<T>{params} {}
  void take(Job& job) { update = job.take<A>(p.batch * p.hidden_size); }
  template <class At>
  SEQKERN_INLINE V early(At at, const V (&sum)[3], const A* h, index_t block) const {
    V r = gate(sum[0] + load(h)), z = gate(sum[1] + load(h + block));
    this->save(at, 0, r);
    this->save(at, 1, z);
    store_n(update + at.n * p.hidden_size + at.u, z, at.lanes);
    return r * this->h_prev(at);
  }
  template <class At>
  SEQKERN_INLINE V late(At at, V sum) const {
    V n = tanh(sum);
    this->save(at, 2, n);
    return gru_blend(load_n(update + at.n * p.hidden_size + at.u, at.lanes), n, this->h_prev(at));
  }
};

// ---- backward ----

template <class T>
struct GruBackwardBase {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kGates = 3;
  static constexpr bool kProjects = false;
  const RecurrentBackward& p;

  void take(Job&) {}
  void start(index_t, index_t, int) const {}
  void finish(index_t, index_t) const {}
  template <class At>
  SEQKERN_INLINE V gate(At at, int g) const {
    index_t at_gate = ((at.t * p.batch + at.n) * 3 + g) * p.hidden_size + at.u;
    return load_n(static_cast<const A*>(p.gates) + at_gate, at.lanes);
  }
  template <class At>
  SEQKERN_INLINE V h_prev(At at) const {
    index_t H = p.hidden_size, length = p.lengths ? p.lengths[at.n] : p.seq_len;
    bool first = p.reverse ? at.t + 1 >= length : at.t == 0;
    if (first) return load_or_zero(static_cast<const T*>(p.h0), at.n * H + at.u, at.lanes);
    index_t t = p.reverse ? at.t + 1 : at.t - 1;
    return load_n(static_cast<const T*>(p.y) + (t * p.batch + at.n) * H + at.u, at.lanes);
  }
};

template <class T>
struct GruBackwardCell : GruBackwardBase<T> {
  using A = acc_t<T>;
  using V = Vec<A>;
  static constexpr int kSums = 4, kLate = 0;
  explicit GruBackwardCell(const RecurrentBackward& params) : GruBackwardBase<T>{params} {}

  template <class At>
  SEQKERN_INLINE V operator()(At at, V dh, V (&d)[4]) const {
    const auto& p = this->p;
    V r = this->gate(at, 0);
    auto g = gru_blend_backward(dh, this->gate(at, 1), this->gate(at, 2), this->h_prev(at));
    V q = load_n(static_cast<const A*>(p.hidden_n) + (at.t * p.batch + at.n) * p.hidden_size + at.u, at.lanes);
    d[0] = logistic_backward(g.n * q, r);
    d[1] = g.z;
    d[2] = g.n;
    d[3] = g.n * r;
    return g.h_prev;
  }
};

template <class T>
struct GruResetFirstBackwardCell : GruBackwardBase<T> {
  using V = Vec<acc_t<T>>;
  static constexpr int kSums = 3, kLate = 1;
  explicit GruResetFirstBackwardCell(const RecurrentBackward& params) : GruBackwardBase<T>{params} {}

  template <class At>
  SEQKERN_INLINE V operator()(At at, V dh, V (&d)[3]) const {
    auto g = gru_blend_backward(dh, this->gate(at, 1), this->gate(at, 2), this->h_prev(at));
    d[1] = g.z;
    d[2] = g.n;
    return g.h_prev;
  }
  // From the gradient of r h: that of r's sum and of h; `reset` is r h itself.
  template <class At>
  SEQKERN_INLINE V reset(At at, V d_reset_h, V& dr, V& reset) const {
    V r = this->gate(at, 0), h = this->h_prev(at);
    dr = logistic_backward(d_reset_h * h, r);
    reset = r * h;
    return d_reset_h * r;
  }
};

}  // namespace

void gru_forward(const RecurrentForward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    if (p.reset_after) ForwardLayer<T, W, GruForwardCell<T>>(p).run();
    else ForwardLayer<T, W, GruResetFirstForwardCell<T>>(p).run();
  });
}
void gru_backward(const RecurrentBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    if (p.reset_after) BackwardLayer<T, W, GruBackwardCell<T>>(p).run();
    else BackwardLayer<T, W, GruResetFirstBackwardCell<T>>(p).run();
  });
}

}  // namespace seqkern::SEQKERN_ISA
