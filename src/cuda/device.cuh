// The device layer: the only inline PTX of the project, and every word of CUDA a kernel uses.
//
// Under nvcc the functions below are PTX or intrinsics. Under any other compiler they have host bodies on top of
// tests/hostcuda/runtime.h, which runs the kernels' own text with one fiber per thread. The layouts of the warp
// matrix instructions are those of the PTX ISA, "Warp-level matrix instructions".
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
// A meeting of `threads` threads of the block, whole warps, at barrier `id` (1 to 15): who arrives does not wait.
SEQKERN_INLINE void sync_at(int id, int threads) {
#if SEQKERN_HOSTCUDA
  hostcuda::barrier(id, threads, true, "bar.sync");
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}
SEQKERN_INLINE void arrive_at(int id, int threads) {
#if SEQKERN_HOSTCUDA
  hostcuda::barrier(id, threads, false, "bar.arrive");
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
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

// ---- clusters: blocks that see each other's shared memory (compute capability 9.0; elsewhere each is alone) ----

SEQKERN_INLINE int cluster_rank() {
#if SEQKERN_HOSTCUDA
  return int(hostcuda::cluster_rank());
#elif __CUDA_ARCH__ >= 900
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
SEQKERN_INLINE int cluster_size() {
#if SEQKERN_HOSTCUDA
  return int(hostcuda::cluster_size());
#elif __CUDA_ARCH__ >= 900
  int size;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
  return size;
#else
  return 1;
#endif
}
// Every thread of the cluster meets here and sees what the others wrote before, wherever it lies.
SEQKERN_INLINE void sync_cluster() {
#if SEQKERN_HOSTCUDA
  hostcuda::cluster_barrier();
#elif __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
// The same place in the dynamic shared memory of another block of the cluster.
template <class T>
SEQKERN_INLINE T* peer(T* p, int rank) {
#if SEQKERN_HOSTCUDA
  return static_cast<T*>(hostcuda::peer(p, unsigned(rank)));
#elif __CUDA_ARCH__ >= 900
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return p;
#endif
}

// ---- mbarriers: a phase ends when `count` threads have arrived and all bytes expected have come ----

#if !SEQKERN_HOSTCUDA
SEQKERN_INLINE std::uint32_t shared_address(const void* p) { return std::uint32_t(__cvta_generic_to_shared(p)); }
#endif
SEQKERN_INLINE void mbarrier_init(std::uint64_t* bar, int count) {  // sync_cluster before anybody else uses it
#if SEQKERN_HOSTCUDA
  hostcuda::mbarrier_init(bar, count);
#elif __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n\tfence.mbarrier_init.release.cluster;" ::"r"(shared_address(bar)),
      "r"(count)
      : "memory");
#endif
}
SEQKERN_INLINE void mbarrier_expect(std::uint64_t* bar, int bytes) {  // arrives, too
#if SEQKERN_HOSTCUDA
  hostcuda::mbarrier_arrive(bar, bytes);
#elif __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
               : "memory");
#endif
}
SEQKERN_INLINE void mbarrier_arrive(std::uint64_t* bar) {
#if SEQKERN_HOSTCUDA
  hostcuda::mbarrier_arrive(bar, 0);
#elif __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
#endif
}
// Whether the phase of this parity has ended.
SEQKERN_INLINE bool mbarrier_test(std::uint64_t* bar, int parity) {
#if SEQKERN_HOSTCUDA
  return hostcuda::mbarrier_done(bar, parity);
#elif __CUDA_ARCH__ >= 900
  int done;
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
      "selp.b32 %0, 1, 0, p;\n\t}"
      : "=r"(done)
      : "r"(shared_address(bar)), "r"(parity)
      : "memory");
  return done;
#else
  return true;
#endif
}
// Until the phase of this parity has ended; the first phase is 0. What came with it to shared memory may be read.
SEQKERN_INLINE void mbarrier_wait(std::uint64_t* bar, int parity) {
#if SEQKERN_HOSTCUDA
  while (!hostcuda::mbarrier_done(bar, parity)) {
  }
#elif __CUDA_ARCH__ >= 900
  int done;
  do
    asm volatile(
        "{\n\t.reg .pred p;\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.b32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
  while (!done);
#endif
}
// *p = v in block `rank` of the cluster; its size in bytes comes to that block's `bar`. Both addresses are this
// block's own.
template <class V>
SEQKERN_INLINE void store_async(V* p, V v, std::uint64_t* bar, int rank) {
  static_assert(sizeof(V) == 4 || sizeof(V) == 8);
#if SEQKERN_HOSTCUDA
  hostcuda::store_async(hostcuda::peer(p, unsigned(rank)), &v, sizeof v,
                        static_cast<std::uint64_t*>(hostcuda::peer(bar, unsigned(rank))));
#elif __CUDA_ARCH__ >= 900
  std::uint32_t to, there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(p)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(bar)), "r"(rank));
  if constexpr (sizeof(V) == 4)
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
                 "r"(bit_cast<std::uint32_t>(v)), "r"(there)
                 : "memory");
  else
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(to),
                 "l"(bit_cast<std::uint64_t>(v)), "r"(there)
                 : "memory");
#endif
}

// ---- words with a flag beside either half, in global memory: whoever sees both flags has the word. Blocks that run
// at the same time tell each other so without a fence and a second trip ----

struct alignas(16) FlaggedWord {
  std::uint64_t halves[2];  // flag, then half of the word
};
SEQKERN_INLINE void store_flagged(FlaggedWord* to, std::uint64_t word, std::uint32_t flag) {
  std::uint64_t low = std::uint64_t(flag) << 32 | std::uint32_t(word), high = std::uint64_t(flag) << 32 | word >> 32;
#if SEQKERN_HOSTCUDA
  *to = {low, high};
  hostcuda::publish_to_all(to);
#else
  asm volatile("st.relaxed.gpu.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(low), "l"(high) : "memory");
#endif
}
// Whether the word is there.
SEQKERN_INLINE bool load_flagged(const FlaggedWord* from, std::uint64_t& word, std::uint32_t flag) {
  std::uint64_t low, high;
#if SEQKERN_HOSTCUDA
  hostcuda::observe_all(from);
  low = from->halves[0], high = from->halves[1];
#else
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(from) : "memory");
#endif
  word = std::uint64_t(std::uint32_t(low)) | high << 32;
  return std::uint32_t(low >> 32) == flag && std::uint32_t(high >> 32) == flag;
}
// In a loop that waits for another block.
SEQKERN_INLINE void let_others_run() {
#if SEQKERN_HOSTCUDA
  hostcuda::let_others_run();
#endif
}

// ---- wide words: both addresses must be multiples of kBytes ----

template <int kBytes>
struct alignas(kBytes) Word {
  std::uint16_t parts[kBytes / 2];
};
template <int kBytes>
SEQKERN_INLINE void copy_word(void* to, const void* from) {
#if SEQKERN_HOSTCUDA
  hostcuda::check_aligned(to, kBytes, "copy_word");
  hostcuda::check_aligned(from, kBytes, "copy_word");
  __builtin_memcpy(to, from, kBytes);
#else
  *static_cast<Word<kBytes>*>(to) = *static_cast<const Word<kBytes>*>(from);
#endif
}

// Sixteen bytes of global memory that nobody writes and nobody else reads.
SEQKERN_INLINE void load_once(std::uint32_t (&to)[4], const void* from) {
#if SEQKERN_HOSTCUDA
  hostcuda::check_aligned(from, 16, "load_once");
  __builtin_memcpy(to, from, 16);
#else
  asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from));
#endif
}

// ---- asynchronous copies, global to shared: `kBytes` 16, 8 or 4; not `valid`: zeros, and nothing is read ----

template <int kBytes>
SEQKERN_INLINE void copy_async(void* to, const void* from, bool valid = true) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4);
#if SEQKERN_HOSTCUDA
  hostcuda::copy_async(to, from, kBytes, valid ? kBytes : 0);
#else
  int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
#endif
}
SEQKERN_INLINE void copy_commit() {
#if SEQKERN_HOSTCUDA
  hostcuda::commit_async();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most kPending of the groups committed last are in flight.
template <int kPending>
SEQKERN_INLINE void copy_wait() {
#if SEQKERN_HOSTCUDA
  hostcuda::wait_async(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- warp matrix products: D [16, 8] += A [16, 16] B [16, 8] of 16-bit values, sums in float ----
//
// Lane l holds, with g = l / 4 and t = l % 4, in pairs of adjacent columns (of A and D) or rows (of B) from 2t on:
//   A  rows g, g + 8, then the same eight columns further      B  column g, then the same eight rows further
//   D  row g, then row g + 8

// Two values rounded to T, the first in the lower half.
template <class T>
SEQKERN_INLINE std::uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
#if SEQKERN_HOSTCUDA
  T a, b;
  store(&a, low), store(&b, high);
  return std::uint32_t(a.bits) | std::uint32_t(b.bits) << 16;
#else
  std::uint32_t both;
  if constexpr (std::is_same_v<T, bf16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}

#if SEQKERN_HOSTCUDA
template <bool kTransposed>
void load_matrices_on_host(std::uint32_t (&r)[4], const void* row) {
  hostcuda::check_aligned(row, 16, "ldmatrix");
  hostcuda::read_shared(row, 16);
  hostcuda::collective(
      kAllLanes, "ldmatrix", &row, &r, [](std::uint32_t, void* const* in, void* const* out) HOSTCUDA_FOR_ALL {
        auto at = [&](int matrix, int i, int j) HOSTCUDA_FOR_ALL {
          return std::uint32_t((*static_cast<const std::uint16_t**>(in[matrix * 8 + i]))[j]);
        };
        for (int l = 0; l < 32; ++l)
          for (int m = 0; m < 4; ++m) {
            int g = l / 4, t = l % 4 * 2;
            static_cast<std::uint32_t*>(out[l])[m] =
                kTransposed ? at(m, t, g) | at(m, t + 1, g) << 16 : at(m, g, t) | at(m, g, t + 1) << 16;
          }
      });
}
template <class T>
void multiply_on_host(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    const std::uint32_t *a, *b;
  } mine{a, b};
  hostcuda::collective(kAllLanes, "mma", &mine, &d,
                       [](std::uint32_t, void* const* in, void* const* out) HOSTCUDA_FOR_ALL {
                         auto half = [](std::uint32_t pair, int which) HOSTCUDA_FOR_ALL {
                           T v{std::uint16_t(pair >> 16 * which)};
                           return double(load(&v));
                         };
                         auto left = [&](int i, int k) HOSTCUDA_FOR_ALL {
                           return half(static_cast<Fragments*>(in[i % 8 * 4 + k % 8 / 2])->a[i / 8 + k / 8 * 2], k % 2);
                         };
                         auto right = [&](int k, int j) HOSTCUDA_FOR_ALL {
                           return half(static_cast<Fragments*>(in[j * 4 + k % 8 / 2])->b[k / 8], k % 2);
                         };
                         for (int i = 0; i < 16; ++i)
                           for (int j = 0; j < 8; ++j) {
                             float& to = static_cast<float*>(out[i % 8 * 4 + j / 2])[i / 8 * 2 + j % 2];
                             double sum = to;
                             for (int k = 0; k < 16; ++k) sum += left(i, k) * right(k, j);
                             to = float(sum);
                           }
                       });
}
#endif

// Four 8 x 8 matrices of 16-bit values from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed = false>
SEQKERN_INLINE void load_matrices(std::uint32_t (&r)[4], const void* row) {
#if SEQKERN_HOSTCUDA
  load_matrices_on_host<kTransposed>(r, row);
#else
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}
template <class T>
SEQKERN_INLINE void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if SEQKERN_HOSTCUDA
  multiply_on_host<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, bf16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- products of a warpgroup (compute capability 9.0a): D [64, N] += A [64, 16] B [16, N], in the background ----
//
// Of D, and of A where it comes from registers, warp w % 4 holds rows 16 w .. 16 w + 15 as in a warp's product, tile
// after tile of eight columns. Otherwise an operand lies in shared memory in panels of rows of 128 bytes, the piece of
// 16 bytes c of row r at c ^ (r % 8), each panel at a multiple of 1024 bytes. Rows are those of A, the columns of B; or
// where B is transposed its own rows.

SEQKERN_INLINE std::uint32_t operand_address(const void* p) {
#if SEQKERN_HOSTCUDA
  return std::uint32_t(static_cast<const unsigned char*>(p) -
                       static_cast<const unsigned char*>(hostcuda::dynamic_shared()));
#else
  return shared_address(p);
#endif
}
// The descriptor of an operand from p on, its next panel that many bytes away.
SEQKERN_INLINE std::uint64_t operand(const void* p, int panel_bytes = 16) {
  constexpr std::uint64_t kSwizzle128 = 1, kEightRows = 1024;
  return std::uint64_t(operand_address(p) >> 4 & 0x3fff) | std::uint64_t(panel_bytes >> 4) << 16 |
         kEightRows >> 4 << 32 | kSwizzle128 << 62;
}

#if SEQKERN_HOSTCUDA
template <class T>
float value_on_host(std::uint16_t bits) {
  T v{bits};
  return load(&v);
}
#elif SEQKERN_HOPPER
#define SEQKERN_LIST_32 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define SEQKERN_LIST_64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define SEQKERN_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEQKERN_16(i) SEQKERN_4(i), SEQKERN_4(i + 4), SEQKERN_4(i + 8), SEQKERN_4(i + 12)
#define SEQKERN_32 SEQKERN_16(0), SEQKERN_16(16)
#define SEQKERN_64 SEQKERN_32, SEQKERN_16(32), SEQKERN_16(48)
#define SEQKERN_WGMMA(n, type) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " "
#endif

// D = or += A B, both from shared memory, B not transposed.
template <class T, int kColumns>
SEQKERN_INLINE void multiply_group(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
  static_assert(kColumns == 64 || kColumns == 128);
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma({kColumns, false, accumulate, a, b, nullptr, d, value_on_host<T>});
#elif SEQKERN_HOPPER
#define SEQKERN_PRODUCT(n, list, registers, at_a, at_b, at_p, type)                                                \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " at_p ", 0;\n\t" SEQKERN_WGMMA(n, type) list ", " at_a ", " at_b \
               ", p, 1, 1, 0, 0;\n\t}"                                                                              \
               : registers                                                                                         \
               : "l"(a), "l"(b), "r"(int(accumulate)))
  if constexpr (kColumns == 64 && std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32", "%33", "%34", "bf16");
  else if constexpr (kColumns == 64)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32", "%33", "%34", "f16");
  else if constexpr (std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64", "%65", "%66", "bf16");
  else
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64", "%65", "%66", "f16");
#undef SEQKERN_PRODUCT
#endif
}
// D += A B, A from registers, B transposed.
template <class T, int kColumns>
SEQKERN_INLINE void multiply_group(float (&d)[kColumns / 2], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(kColumns == 64 || kColumns == 128);
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma({kColumns, true, true, 0, b, a, d, value_on_host<T>});
#elif SEQKERN_HOPPER
#define SEQKERN_PRODUCT(n, list, registers, left, at_b, type)                                   \
  asm volatile(SEQKERN_WGMMA(n, type) list ", {" left "}, " at_b ", 1, 1, 1, 1;"                \
               : registers                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
  if constexpr (kColumns == 64 && std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32, %33, %34, %35", "%36", "bf16");
  else if constexpr (kColumns == 64)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32, %33, %34, %35", "%36", "f16");
  else if constexpr (std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64, %65, %66, %67", "%68", "bf16");
  else
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64, %65, %66, %67", "%68", "f16");
#undef SEQKERN_PRODUCT
#endif
}
// Before the first product, and whenever a register of one has been touched since the last.
SEQKERN_INLINE void group_fence() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
SEQKERN_INLINE void group_commit() {
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma_commit();
#elif SEQKERN_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// What x, which is not negative, comes from is done before anything that follows: the compiler would rather wait first.
SEQKERN_INLINE void require(float x) {
#if SEQKERN_HOSTCUDA
  (void)x;
#else
  asm volatile("{\n\t.reg .pred p;\n\tsetp.lt.f32 p, %0, 0f00000000;\n\t@p nanosleep.u32 0;\n\t}" ::"f"(x) : "memory");
#endif
}
// What comes before this, and computes x, is not put off until after it, nor what comes after done before.
template <int kCount>
SEQKERN_INLINE void settle(float (&x)[kCount]) {
#if SEQKERN_HOSTCUDA
  (void)x;
#else
  SEQKERN_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
#endif
}
// Until at most kPending of the products committed last are under way; `d` is the result of one that has ended.
template <int kPending, int kCount>
SEQKERN_INLINE void group_wait(float (&d)[kCount]) {
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma_wait(kPending);
#elif SEQKERN_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
  settle(d);
}
// What this thread wrote to shared memory, or copied there and waited for, is there for products of a warpgroup.
SEQKERN_INLINE void fence_products() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Registers a thread of the warpgroup may have from here on; what one gives up another takes.
template <int kCount>
SEQKERN_INLINE void give_registers() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
SEQKERN_INLINE void take_registers() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

}  // namespace seqkern::cuda
