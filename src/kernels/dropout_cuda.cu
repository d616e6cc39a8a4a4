// Dropout on the GPU: every element draws its own word, so that any layout of threads gives the same mask.
#include "cuda/elements.cuh"
#include "cuda/philox.cuh"
#include "cuda/types.cuh"
#include "seqkern/elementwise.h"

namespace seqkern::cuda {
namespace {

template <class A>
struct Dropped {
  Drop<A> drop;
  SEQKERN_INLINE A operator()(index_t e, A x) const { return drop.keeps(std::uint64_t(e)) ? x * drop.scale : A(0); }
};

}  // namespace

void dropout(const Dropout& p, void* stream) {
  for_type(p.dtype, [&]<class T>() {
    Dropped<acc_t<T>> f{Drop<acc_t<T>>(p.p, p.seed, p.offset)};
    for_elements(p.count, stream, f, Inputs<T, 1>{{static_cast<const T*>(p.x)}}, p.y);
  });
}

}  // namespace seqkern::cuda
