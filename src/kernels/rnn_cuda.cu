// Vanilla RNN on the GPU: the cell for layer_forward.cuh and layer_backward.cuh.
#include "layer_backward.cuh"
#include "rnn_cell.h"

namespace seqkern::cuda {
namespace {

template <class T>
struct RnnForwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 1, kLate = 0, kFolded = 1;
  static constexpr bool kCarries = false;
  struct Constants {};
  struct Kept {};
  RecurrentForward p;

  SEQKERN_INLINE Constants constants(index_t) const { return {}; }
  SEQKERN_INLINE A operator()(const A (&x)[1], const A (&h)[1], A, const Constants&, A&, Kept&) const {
    return rnn_cell(x[0] + h[0], p.relu);
  }
  SEQKERN_INLINE void keep(Site, const Kept&, bool) const {}
};

template <class T>
struct RnnBackwardCell {
  using A = acc_t<T>;
  static constexpr int kGates = 1, kSums = 1, kLate = 0;
  static constexpr bool kCarries = false;
  struct Saved {
    A y;
  };
  RecurrentBackward p;

  SEQKERN_INLINE void start(Site) const {}
  SEQKERN_INLINE void finish(Site) const {}
  SEQKERN_INLINE A output(Site) const { return A(0); }
  SEQKERN_INLINE Saved read(Site at) const {
    return {load(static_cast<const T*>(p.y) + (at.t * p.batch + at.n) * p.hidden_size + at.u)};
  }
  SEQKERN_INLINE A operator()(const Saved& s, A dh, A&, A (&d)[1]) const {
    d[0] = rnn_cell_backward(dh, s.y, p.relu);
    return A(0);
  }
  SEQKERN_INLINE A operator()(Site at, A dh, A (&d)[1]) const {
    A none = 0;
    return (*this)(read(at), dh, none, d);
  }
};

std::size_t forward(const RecurrentForward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using Cell = RnnForwardCell<T>;
    bytes = layer_forward<T, W, Cell>(p, workspace, stream, [&](Pieces&) { return Cell{p}; });
  });
  return bytes;
}
std::size_t backward(const RecurrentBackward& p, void* workspace, void* stream) {
  std::size_t bytes = 0;
  for_types(p.dtype, p.weight_dtype, [&]<class T, class W>() {
    using Cell = RnnBackwardCell<T>;
    bytes = layer_backward<T, W, Cell>(p, workspace, stream, [&](Pieces&) { return Cell{p}; });
  });
  return bytes;
}

}  // namespace

std::size_t rnn_forward_workspace(const RecurrentForward& p) { return forward(p, nullptr, nullptr); }
std::size_t rnn_backward_workspace(const RecurrentBackward& p) { return backward(p, nullptr, nullptr); }
void rnn_forward(const RecurrentForward& p, void* workspace, void* stream) { forward(p, workspace, stream); }
void rnn_backward(const RecurrentBackward& p, void* workspace, void* stream) { backward(p, workspace, stream); }

}  // namespace seqkern::cuda
