// The device layer's ways between memories: clusters, mbarriers, words, asynchronous copies. Include device.cuh.
#pragma once
#include "cuda/device_core.cuh"

namespace seqkern::cuda {

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
SEQKERN_INLINE bool arrived(const FlaggedWord& word, std::uint32_t flag) {
  return std::uint32_t(word.halves[0] >> 32) == flag && std::uint32_t(word.halves[1] >> 32) == flag;
}
// Looks again, unless the word is there.
SEQKERN_INLINE void load_unless(bool there, FlaggedWord& word, const FlaggedWord* from) {
#if SEQKERN_HOSTCUDA
  if (there) return;
  hostcuda::observe_all(from);
  word = *from;
#else
  asm volatile(
      "{\n\t.reg .pred p;\n\t"
      "setp.eq.b32 p, %3, 0;\n\t"
      "@p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];\n\t}"
      : "+l"(word.halves[0]), "+l"(word.halves[1])
      : "l"(from), "r"(int(there))
      : "memory");
#endif
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

}  // namespace seqkern::cuda
