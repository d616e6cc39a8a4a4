// Vanilla RNN on the CPU: the cell for layer_forward.h and layer_backward.h.
#include "layer_backward.h"
#include "rnn_cell.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T>
struct RnnForwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 1, kLate = 0, kFolded = 1;
  static constexpr bool kProjects = false;
  const RecurrentForward& p;

  void take(Job&) {}
  template <class At>
  SEQKERN_INLINE Vec<A> operator()(At, const Vec<A> (&sum)[1], const A* h, index_t) const {
    return rnn_cell(sum[0] + load(h), p.relu);
  }
};

template <class T>
struct RnnBackwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 1, kSums = 1, kLate = 0;
  static constexpr bool kProjects = false;
  const RecurrentBackward& p;

  void take(Job&) {}
  void start(index_t, index_t, int) const {}
  void finish(index_t, index_t) const {}
  template <class At>
  SEQKERN_INLINE Vec<A> operator()(At at, Vec<A> dh, Vec<A> (&d)[1]) const {
    auto y = static_cast<const T*>(p.y) + (at.t * p.batch + at.n) * p.hidden_size + at.u;
    d[0] = rnn_cell_backward(dh, load_n(y, at.lanes), p.relu);
    return Vec<A>{};
  }
};

}  // namespace

void rnn_forward(const RecurrentForward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { ForwardLayer<T, W, RnnForwardCell<T>>(p).run(); });
}
void rnn_backward(const RecurrentBackward& p) {
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() { BackwardLayer<T, W, RnnBackwardCell<T>>(p).run(); });
}

}  // namespace seqkern::SEQKERN_ISA
