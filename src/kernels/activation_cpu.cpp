// Scalar functions over whole arrays, forward and backward: one pass, bound by memory. Threads share the elements.
#include "seqkern/activation.h"

#include "passes.h"
#include "simd/math.h"
#include "types_cpu.h"

#include "activation_cell.h"  // over math.h

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T, class F>
void forward(const ActivationForward& p) {
  for_ranges(p.count, [&](index_t begin, index_t end) {
    auto x = static_cast<const T*>(p.x) + begin;
    auto y = static_cast<T*>(p.y) + begin;
    for_columns<acc_t<T>>(end - begin, [&](index_t i, auto n) { store_n(y + i, F::value(load_n(x + i, n)), n); });
  });
}

template <class T, class F>
void backward(const ActivationBackward& p) {
  for_ranges(p.count, [&](index_t begin, index_t end) {
    auto saved = static_cast<const T*>(p.saved) + begin, dy = static_cast<const T*>(p.dy) + begin;
    auto dx = static_cast<T*>(p.dx) + begin;
    for_columns<acc_t<T>>(end - begin, [&](index_t i, auto n) {
      store_n(dx + i, F::gradient(load_n(saved + i, n), load_n(dy + i, n)), n);
    });
  });
}

}  // namespace

void activation_forward(const ActivationForward& p) {
  for_type(p.dtype, [&]<class T>() { for_function(p.function, [&]<class F>() { forward<T, F>(p); }); });
}
void activation_backward(const ActivationBackward& p) {
  for_type(p.dtype, [&]<class T>() { for_function(p.function, [&]<class F>() { backward<T, F>(p); }); });
}

}  // namespace seqkern::SEQKERN_ISA
