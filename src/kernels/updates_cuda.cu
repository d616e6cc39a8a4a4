// The optimisers' updates on the GPU: one pass over the parameter, its gradient and the state, as on the CPU.
#include "seqkern/elementwise.h"

#include "cuda/launch.cuh"
#include "cuda/types.cuh"

namespace seqkern::cuda {
namespace {

template <class T>
struct Sgd {
  using A = acc_t<T>;
  SgdUpdate p;
  A lr, momentum, keep, decay;
  explicit Sgd(const SgdUpdate& u)
      : p(u), lr(A(u.lr)), momentum(A(u.momentum)), keep(A(1 - u.dampening)), decay(A(u.weight_decay)) {}

  SEQKERN_INLINE void operator()(index_t i) const {
    T* param = static_cast<T*>(p.param) + i;
    A w = load(param), g = static_cast<const A*>(p.grad)[i] + decay * w;
    if (p.momentum_buffer) {
      A* buffer = static_cast<A*>(p.momentum_buffer) + i;
      A b = *buffer = momentum * *buffer + keep * g;
      g = p.nesterov ? g + momentum * b : b;
    }
    store(param, w - lr * g);
  }
};

template <class T>
struct Adagrad {
  using A = acc_t<T>;
  AdagradUpdate p;
  A lr, eps, decay;
  explicit Adagrad(const AdagradUpdate& u) : p(u), lr(A(u.lr)), eps(A(u.eps)), decay(A(u.weight_decay)) {}

  SEQKERN_INLINE void operator()(index_t i) const {
    T* param = static_cast<T*>(p.param) + i;
    A w = load(param), g = static_cast<const A*>(p.grad)[i] + decay * w, &sum = static_cast<A*>(p.sum)[i];
    sum += g * g;
    store(param, w - lr * g / (sqrt(sum) + eps));
  }
};

template <class T>
struct Adamw {
  using A = acc_t<T>;
  AdamwUpdate p;
  A beta1, beta2, rest1, rest2, eps, shrink, step, root;
  explicit Adamw(const AdamwUpdate& u)
      : p(u),
        beta1(A(u.beta1)),
        beta2(A(u.beta2)),
        rest1(A(1 - u.beta1)),
        rest2(A(1 - u.beta2)),
        eps(A(u.eps)),
        shrink(A(1 - u.lr * u.weight_decay)),
        step(A(u.lr / (1 - std::pow(u.beta1, double(u.step))))),
        root(A(1 / std::sqrt(1 - std::pow(u.beta2, double(u.step))))) {}

  SEQKERN_INLINE void operator()(index_t i) const {
    T* param = static_cast<T*>(p.param) + i;
    A g = static_cast<const A*>(p.grad)[i], &m = static_cast<A*>(p.exp_avg)[i], &v = static_cast<A*>(p.exp_avg_sq)[i];
    m = beta1 * m + rest1 * g;
    v = beta2 * v + rest2 * g * g;
    store(param, load(param) * shrink - step * m / (sqrt(v) * root + eps));
  }
};

template <class Update>
__global__ void __launch_bounds__(256) update_kernel(index_t count, Update update) {
  index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) update(i);
}

template <template <class> class Update, class Params>
void run(const Params& p, void* stream) {
  if (!p.count) return;
  Launch l{dim3(unsigned(min_of(ceil_div(p.count, 256), 65536))), dim3(256)};
  l.stream = static_cast<cudaStream_t>(stream);
  for_type(p.dtype, [&]<class T>() { launch(l, update_kernel<Update<T>>, p.count, Update<T>(p)); });
}

}  // namespace

void sgd_update(const SgdUpdate& p, void* stream) { run<Sgd>(p, stream); }
void adagrad_update(const AdagradUpdate& p, void* stream) { run<Adagrad>(p, stream); }
void adamw_update(const AdamwUpdate& p, void* stream) { run<Adamw>(p, stream); }

}  // namespace seqkern::cuda
