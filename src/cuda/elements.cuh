// Kernels over the elements of contiguous arrays, one pass: 16 bytes at a time where all addresses allow it.
#pragma once
#include "cuda/launch.cuh"

namespace seqkern::cuda {

inline constexpr int kElementThreads = 256, kTurns = 2;  // pieces of a thread that are on their way together

template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Adjacent {
  T v[kWidth];
};

// values rounded to T, in pairs where T is of 16 bits.
template <class T, int kWidth>
SEQKERN_INLINE void store_all(Adjacent<T, kWidth>& to, const acc_t<T> (&values)[kWidth]) {
  if constexpr (sizeof(T) == 2 && kWidth > 1) {
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; k += 2) {
      std::uint32_t both = pack<T>(values[k], values[k + 1]);
      copy_word<4>(to.v + k, &both);
    }
  } else {
    SEQKERN_UNROLL
    for (int k = 0; k < kWidth; ++k) store(to.v + k, values[k]);
  }
}

// The arrays that are read; element i of each is what a function of the element gets.
template <class T, int kCount>
struct Inputs {
  const T* at[kCount];

  template <class F>
  SEQKERN_INLINE acc_t<T> apply(const F& f, index_t i, const T* const (&from)[kCount], index_t k) const {
    if constexpr (kCount == 1) return f(i, load(from[0] + k));
    else return f(i, load(from[0] + k), load(from[1] + k));
  }
};

// out[i] = f(i, inputs[i]...)
template <int kWidth, int kCount, class F, class T>
__global__ void __launch_bounds__(kElementThreads, 4)
    elements_kernel(index_t count, F f, Inputs<T, kCount> in, T* out) {
  constexpr int kStep = kElementThreads * kWidth;  // from a piece of a thread to its next
  index_t all = index_t(gridDim.x) * kStep * kTurns;
  for (index_t i = index_t(blockIdx.x) * kStep * kTurns + threadIdx.x * kWidth; i < count; i += all) {
    const T* from[kCount];
    if (i + kStep * (kTurns - 1) + kWidth > count) {
      for (int n = 0; n < kCount; ++n) from[n] = in.at[n] + i;
      for (index_t turn = 0; turn < kStep * kTurns; turn += kStep)
        for (index_t k = turn; k < min_of(turn + kWidth, count - i); ++k)
          store(out + i + k, in.apply(f, i + k, from, k));
      continue;
    }
    Adjacent<T, kWidth> x[kTurns][kCount], y;
    SEQKERN_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) SEQKERN_UNROLL
    for (int n = 0; n < kCount; ++n)
      copy_word<kWidth * sizeof(T)>(x[turn][n].v, in.at[n] + i + turn * kStep);
    SEQKERN_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      for (int n = 0; n < kCount; ++n) from[n] = x[turn][n].v;
      acc_t<T> values[kWidth];
      SEQKERN_UNROLL
      for (int k = 0; k < kWidth; ++k) values[k] = in.apply(f, i + turn * kStep + k, from, k);
      store_all(y, values);
      copy_word<kWidth * sizeof(T)>(out + i + turn * kStep, y.v);
    }
  }
}

template <int kCount, class F, class T>
void for_elements(index_t count, void* stream, F f, Inputs<T, kCount> in, void* out_) {
  if (!count) return;
  auto out = static_cast<T*>(out_);
  constexpr int kWidth = 16 / int(sizeof(T));
  auto addresses = std::uintptr_t(out);
  for (auto p : in.at) addresses |= std::uintptr_t(p);
  bool wide = addresses % 16 == 0;
  index_t blocks = ceil_div(count, kElementThreads * kTurns * (wide ? kWidth : 1));
  Launch l{dim3(unsigned(min_of(blocks, 65536))), dim3(kElementThreads)};
  l.stream = static_cast<cudaStream_t>(stream);
  if (wide) launch(l, elements_kernel<kWidth, kCount, F, T>, count, f, in, out);
  else launch(l, elements_kernel<1, kCount, F, T>, count, f, in, out);
}

}  // namespace seqkern::cuda
