// The device layer's foundation: macros, storage, functions, a block and its warps. Include device.cuh.
#pragma once
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "seqkern/types.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define SEQKERN_HOSTCUDA 0
#else
#include "hostcuda/runtime.h"
#define SEQKERN_HOSTCUDA 1
#endif

// The cells of src/kernels/*_cell.h are compiled into this namespace, over V = float or double.
#define SEQKERN_ISA cuda
#define SEQKERN_INLINE __device__ __forceinline__
// Whether the code being compiled may use what compute capability 9.0a alone has.
#if SEQKERN_HOSTCUDA || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SEQKERN_HOPPER 1
#else
#define SEQKERN_HOPPER 0
#endif
#if SEQKERN_HOSTCUDA
#define SEQKERN_UNROLL
#define SEQKERN_UNROLL_BY(n)
#else
#define SEQKERN_PRAGMA(text) _Pragma(#text)
#define SEQKERN_UNROLL _Pragma("unroll")
#define SEQKERN_UNROLL_BY(n) SEQKERN_PRAGMA(unroll n)
#endif

// `name`: the block's dynamic shared memory, 1024-byte aligned.
// SEQKERN_SHARED(type, name, count): an array of the block's own.
#if SEQKERN_HOSTCUDA
#define SEQKERN_DYNAMIC_SHARED(name) auto name = static_cast<unsigned char*>(::hostcuda::dynamic_shared())
#define SEQKERN_SHARED(type, name, count) \
  static const char name##_key = 0;       \
  auto name = static_cast<type*>(::hostcuda::static_shared(&name##_key, sizeof(type) * (count)))
#else
#define SEQKERN_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#define SEQKERN_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace seqkern::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// ---- storage: one value at a time; arithmetic is float, or double for double ----

template <class To, class From>
SEQKERN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

SEQKERN_INLINE float load(const float* p) { return *p; }
SEQKERN_INLINE double load(const double* p) { return *p; }
SEQKERN_INLINE float load(const bf16* p) { return bit_cast<float>(std::uint32_t(p->bits) << 16); }
SEQKERN_INLINE float load(const f16* p) {
#if SEQKERN_HOSTCUDA
  return float(bit_cast<_Float16>(p->bits));
#else
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(p->bits));
  return v;
#endif
}

SEQKERN_INLINE void store(float* p, float v) { *p = v; }
SEQKERN_INLINE void store(double* p, double v) { *p = v; }
SEQKERN_INLINE void store(bf16* p, float v) {  // to nearest even
#if SEQKERN_HOSTCUDA
  auto u = bit_cast<std::uint32_t>(v);
  p->bits = v == v ? std::uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16) : std::uint16_t(0x7fff);
#else
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(v));
#endif
}
SEQKERN_INLINE void store(f16* p, float v) {
#if SEQKERN_HOSTCUDA
  p->bits = bit_cast<std::uint16_t>(_Float16(v));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v));
#endif
}

// As a value stored and loaded again.
template <class T>
SEQKERN_INLINE acc_t<T> rounded(acc_t<T> v) {
  T stored;
  store(&stored, v);
  return load(&stored);
}

template <class T>
SEQKERN_INLINE acc_t<T> load_or_zero(const T* p, index_t offset) {
  return p ? load(p + offset) : acc_t<T>(0);
}

// ---- functions ----

SEQKERN_INLINE float exp(float x) { return ::expf(x); }
SEQKERN_INLINE double exp(double x) { return ::exp(x); }
SEQKERN_INLINE float log(float x) { return ::logf(x); }
SEQKERN_INLINE double log(double x) { return ::log(x); }
SEQKERN_INLINE float tanh(float x) { return ::tanhf(x); }
SEQKERN_INLINE double tanh(double x) { return ::tanh(x); }
SEQKERN_INLINE float abs(float x) { return ::fabsf(x); }
SEQKERN_INLINE double abs(double x) { return ::fabs(x); }
SEQKERN_INLINE float exp2(float x) { return ::exp2f(x); }
// Of a normal number whose reciprocal is one, to an ulp, in one instruction.
SEQKERN_INLINE float reciprocal(float x) {
#if SEQKERN_HOSTCUDA
  return 1 / x;
#else
  asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
  return x;
#endif
}
SEQKERN_INLINE double reciprocal(double x) { return 1 / x; }
SEQKERN_INLINE float exp2_flushed(float x) {  // to 2 ulp; what is below the normal numbers comes out as 0
#if SEQKERN_HOSTCUDA
  float y = ::exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
SEQKERN_INLINE float sqrt(float x) { return ::sqrtf(x); }
SEQKERN_INLINE double sqrt(double x) { return ::sqrt(x); }
template <class V>
SEQKERN_INLINE V sigmoid(V x) {
  V e = exp(x < 0 ? x : -x);  // of -|x|: nothing overflows
  return (x < 0 ? e : V(1)) * reciprocal(1 + e);
}
template <class V>
SEQKERN_INLINE V gate(V x) {
  return sigmoid(x);
}
// The larger; NaN wins.
template <class V>
SEQKERN_INLINE V max_or_nan(V a, V b) {
#if !SEQKERN_HOSTCUDA && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<V, float>) {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
  }
#endif
  return a > b || a != a ? a : b;
}
SEQKERN_INLINE float larger(float x, float y) { return ::fmaxf(x, y); }  // that which is a number
template <class V>
SEQKERN_INLINE V infinity() {
  return V(__builtin_huge_val());
}

// ---- a block and its warps ----

SEQKERN_INLINE int lane_id() { return int(threadIdx.x) & 31; }
SEQKERN_INLINE int warp_id() { return int(threadIdx.x) >> 5; }
SEQKERN_INLINE int warps() { return int(blockDim.x) >> 5; }

SEQKERN_INLINE void sync_block() {
#if SEQKERN_HOSTCUDA
  hostcuda::barrier(0, 0, true, "__syncthreads");
#else
  __syncthreads();
#endif
}
SEQKERN_INLINE void sync_warp() {
#if SEQKERN_HOSTCUDA
  hostcuda::collective(kAllLanes, "__syncwarp", nullptr, nullptr, nullptr);
#else
  __syncwarp();
#endif
}
#if SEQKERN_HOSTCUDA
template <class T>
struct ShuffleOperand {
  T value;
  int from;
};
template <class T>
T shuffle_on_host(T v, int from, const char* what, unsigned mask) {
  ShuffleOperand<T> in{v, from};
  hostcuda::collective(mask, what, &in, &v, [](std::uint32_t m, void* const* i, void* const* o) HOSTCUDA_FOR_ALL {
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      int s = static_cast<ShuffleOperand<T>*>(i[l])->from;
      if (!(m >> s & 1)) hostcuda::fail("shuffle from lane %d, which takes no part", s);
      *static_cast<T*>(o[l]) = static_cast<ShuffleOperand<T>*>(i[s])->value;
    }
  });
  return v;
}
#endif
template <class T>
SEQKERN_INLINE T shuffle(T v, int from, unsigned mask = kAllLanes) {
#if SEQKERN_HOSTCUDA
  return shuffle_on_host(v, from & 31, "__shfl_sync", mask);
#else
  return __shfl_sync(mask, v, from);
#endif
}
template <class T>
SEQKERN_INLINE T shuffle_xor(T v, int with, unsigned mask = kAllLanes) {
#if SEQKERN_HOSTCUDA
  return shuffle_on_host(v, hostcuda::lane() ^ with, "__shfl_xor_sync", mask);
#else
  return __shfl_xor_sync(mask, v, with);
#endif
}
// Bit l: whether lane l says so.
SEQKERN_INLINE unsigned ballot(bool says) {
#if SEQKERN_HOSTCUDA
  unsigned votes = 0;
  hostcuda::collective(kAllLanes, "__ballot_sync", &says, &votes,
                       [](std::uint32_t m, void* const* i, void* const* o) HOSTCUDA_FOR_ALL {
                         unsigned all = 0;
                         for (int l = 0; l < 32; ++l)
                           if (m >> l & 1) all |= unsigned(*static_cast<bool*>(i[l])) << l;
                         for (int l = 0; l < 32; ++l)
                           if (m >> l & 1) *static_cast<unsigned*>(o[l]) = all;
                       });
  return votes;
#else
  return __ballot_sync(kAllLanes, says);
#endif
}

// ---- a kernel that starts before the one ahead of it on the stream has ended (Launch::early, 9.0) ----

// As soon as every block has said so, or has ended, the next kernel may start.
SEQKERN_INLINE void let_next_start() {
#if !SEQKERN_HOSTCUDA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Until the kernel ahead has ended and what it wrote is there.
SEQKERN_INLINE void wait_for_previous() {
#if !SEQKERN_HOSTCUDA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace seqkern::cuda
