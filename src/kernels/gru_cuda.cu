// GRU on the GPU: the cells for layer_forward.cuh and layer_backward.cuh, with the reset gate after the recurrent
// product (torch, cuDNN) and before it (ONNX's default), which costs a second product in the step.
#include "layer_backward.cuh"

#include "gru_cell.h"

namespace seqkern::cuda {
namespace {

// ---- forward ----

template <class T>
struct GruForwardBase {
  using A = acc_t<T>;
  static constexpr int kGates = 3;
  RecurrentForward p;

  SEQKERN_INLINE void save(Site at, int gate, A v, bool on) const {
    if (!p.gates) return;
    static_cast<A*>(p.gates)[((at.t * p.batch + at.n) * 3 + gate) * p.hidden_size + at.u] = on ? v : A(0);
  }
};

template <class T>
struct GruForwardCell : GruForwardBase<T> {
  using A = acc_t<T>;
  static constexpr int kLate = 0, kFolded = 2;
  static constexpr bool kCarries = false;
  struct Constants {
    A bias;
  };
  struct Kept {
    A r, z, n, q;
  };

  SEQKERN_INLINE Constants constants(index_t u) const {
    return {load_or_zero(static_cast<const A*>(this->p.bias_hh), 2 * this->p.hidden_size + u)};
  }
  SEQKERN_INLINE A operator()(const A (&x)[3], const A (&h)[3], A h_prev, const Constants& k, A&, Kept& kept) const {
    A q = h[2] + k.bias, r = sigmoid(x[0] + h[0]), z = sigmoid(x[1] + h[1]), n = tanh(x[2] + r * q);
    kept = {r, z, n, q};
    return gru_blend(z, n, h_prev);
  }
  SEQKERN_INLINE void keep(Site at, const Kept& kept, bool on) const {
    const RecurrentForward& p = this->p;
    this->save(at, 0, kept.r, on);
    this->save(at, 1, kept.z, on);
    this->save(at, 2, kept.n, on);
    if (p.hidden_n) static_cast<A*>(p.hidden_n)[(at.t * p.batch + at.n) * p.hidden_size + at.u] = on ? kept.q : A(0);
  }
};

template <class T>
struct GruResetFirstForwardCell : GruForwardBase<T> {
  using A = acc_t<T>;
  static constexpr int kLate = 1, kFolded = 3;
  A* update;  // z of the step, [N, H]

  SEQKERN_INLINE A early(Site at, const A (&x)[2], const A (&h)[2], A h_prev, bool on) const {
    A r = sigmoid(x[0] + h[0]), z = sigmoid(x[1] + h[1]);
    this->save(at, 0, r, on);
    this->save(at, 1, z, on);
    update[at.n * this->p.hidden_size + at.u] = z;
    return r * h_prev;
  }
  SEQKERN_INLINE A late(Site at, A sum, A h_prev, bool on) const {
    A n = tanh(sum);
    this->save(at, 2, n, on);
    return gru_blend(update[at.n * this->p.hidden_size + at.u], n, h_prev);
  }
};

// ---- backward ----

template <class T>
struct GruBackwardBase {
  using A = acc_t<T>;
  static constexpr int kGates = 3;
  RecurrentBackward p;

  SEQKERN_INLINE void start(Site) const {}
  SEQKERN_INLINE void finish(Site) const {}
  SEQKERN_INLINE A output(Site) const { return A(0); }
  SEQKERN_INLINE A gate(Site at, int g) const {
    return static_cast<const A*>(p.gates)[((at.t * p.batch + at.n) * 3 + g) * p.hidden_size + at.u];
  }
  SEQKERN_INLINE A h_prev(Site at) const { return state_before<T>(p, p.h0, p.y, p.hidden_size, at); }
};

template <class T>
struct GruBackwardCell : GruBackwardBase<T> {
  using A = acc_t<T>;
  static constexpr int kSums = 4, kLate = 0;
  static constexpr bool kCarries = false;
  struct Saved {
    A r, z, n, q, h_prev;
  };

  SEQKERN_INLINE Saved read(Site at) const {
    const RecurrentBackward& p = this->p;
    A q = static_cast<const A*>(p.hidden_n)[(at.t * p.batch + at.n) * p.hidden_size + at.u];
    return {this->gate(at, 0), this->gate(at, 1), this->gate(at, 2), q, this->h_prev(at)};
  }
  SEQKERN_INLINE A operator()(const Saved& s, A dh, A&, A (&d)[4]) const {
    auto g = gru_blend_backward(dh, s.z, s.n, s.h_prev);
    d[0] = logistic_backward(g.n * s.q, s.r);
    d[1] = g.z;
    d[2] = g.n;
    d[3] = g.n * s.r;
    return g.h_prev;
  }
  SEQKERN_INLINE A operator()(Site at, A dh, A (&d)[4]) const {
    A none = 0;
    return (*this)(read(at), dh, none, d);
  }
};

template <class T>
struct GruResetFirstBackwardCell : GruBackwardBase<T> {
  using A = acc_t<T>;
  static constexpr int kSums = 3, kLate = 1;

  SEQKERN_INLINE A operator()(Site at, A dh, A (&d)[3]) const {
    auto g = gru_blend_backward(dh, this->gate(at, 1), this->gate(at, 2), this->h_prev(at));
    d[1] = g.z;
    d[2] = g.n;
    return g.h_prev;
  }
  // From the gradient of r h: that of r's sum, and the return value, that of h.
  SEQKERN_INLINE A reset(Site at, A d_reset_h, A& dr) const {
    A r = this->gate(at, 0);
    dr = logistic_backward(d_reset_h * this->h_prev(at), r);
    return d_reset_h * r;
  }
};

std::size_t forward(const RecurrentForward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using After = GruForwardCell<T>;
    using First = GruResetFirstForwardCell<T>;
    if (p.reset_after) bytes = layer_forward<T, W, After>(p, workspace, stream, [&](Pieces&) { return After{{p}}; });
    else
      bytes = layer_forward<T, W, First>(p, workspace, stream, [&](Pieces& pieces) {
        return First{{p}, pieces.take<acc_t<T>>(p.batch * p.hidden_size)};
      });
  });
  return bytes;
}
std::size_t backward(const RecurrentBackward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using After = GruBackwardCell<T>;
    using First = GruResetFirstBackwardCell<T>;
    if (p.reset_after) bytes = layer_backward<T, W, After>(p, workspace, stream, [&](Pieces&) { return After{{p}}; });
    else bytes = layer_backward<T, W, First>(p, workspace, stream, [&](Pieces&) { return First{{p}}; });
  });
  return bytes;
}

}  // namespace

std::size_t gru_forward_workspace(const RecurrentForward& p) { return forward(p, nullptr, nullptr); }
std::size_t gru_backward_workspace(const RecurrentBackward& p) { return backward(p, nullptr, nullptr); }
void gru_forward(const RecurrentForward& p, void* workspace, void* stream) { forward(p, workspace, stream); }
void gru_backward(const RecurrentBackward& p, void* workspace, void* stream) { backward(p, workspace, stream); }

}  // namespace seqkern::cuda
