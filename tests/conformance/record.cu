// What the wrappers of src/cuda/device.cuh do, bit by bit: one line of JSON, name -> 32-bit words.
//
// On a GPU, built by nvcc, it is the record; by a host compiler, over tests/hostcuda, the emulation that has to agree
// with it (tests/test_conformance.py). Each kernel is one warp but for those of clusters and warpgroups.
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/launch.cuh"

namespace seqkern::cuda {
namespace {

constexpr int kWords = 1024;
using Word32 = std::uint32_t;

SEQKERN_INLINE Word32 noise(Word32 i) {
  i = (i ^ 61u ^ i >> 16) * 9u;
  i = (i ^ i >> 4) * 0x27d4eb2du;
  return i ^ i >> 15;
}
// A 16-bit value of T between -4 and 4.
template <class T>
SEQKERN_INLINE std::uint16_t value(Word32 i) {
  T v;
  store(&v, float(int(noise(i) % 4096u) - 2048) / 512.0f);
  return v.bits;
}

template <class T>
__global__ void conversions(Word32* out) {
  for (int i = int(threadIdx.x); i < kWords / 2; i += 32) {
    Word32 bits = i < 256 ? noise(Word32(i)) : Word32(i) << 24 | 0x00001000u * Word32(i % 7);  // signs, ties, infinities
    T v;
    store(&v, bit_cast<float>(bits));
    out[i] = load(&v) == load(&v) ? v.bits : 0x7fffu;  // NaNs may differ
    out[kWords / 2 + i] = pack<T>(1.0f + float(i) / 1024, -float(i));
  }
}

__global__ void warps_kernel(Word32* out) {
  Word32 v = noise(threadIdx.x), lane = Word32(lane_id());
  out[lane] = shuffle(v, int(v % 32));
  out[32 + lane] = shuffle_xor(v, 5);
  out[64 + lane] = ballot(v & 1u);
  sync_warp();
}

template <class T>
__global__ void matrices(Word32* out) {
  SEQKERN_DYNAMIC_SHARED(shared);
  auto memory = reinterpret_cast<std::uint16_t*>(shared);
  for (int i = int(threadIdx.x); i < 512; i += 32) memory[i] = value<T>(Word32(i));
  sync_block();
  Word32 a[4], b[4];
  int lane = lane_id();
  load_matrices(a, memory + lane * 8);
  load_matrices<true>(b, memory + 256 + lane * 8);
  float d[4] = {0.5f, -0.25f, float(lane), 1};
  multiply<T>(d, a, {b[0], b[1]});
  for (int i = 0; i < 4; ++i) {
    out[i * 32 + lane] = a[i];
    out[128 + i * 32 + lane] = b[i];
    out[256 + i * 32 + lane] = bit_cast<Word32>(d[i]);
  }
}

__global__ void copies(Word32* out) {
  SEQKERN_DYNAMIC_SHARED(shared);
  auto memory = reinterpret_cast<Word32*>(shared);
  int lane = lane_id();
  for (int i = 0; i < 4; ++i) out[512 + lane * 4 + i] = noise(Word32(lane * 4 + i));
  sync_block();
  copy_async<16>(memory + lane * 4, out + 512 + lane * 4, lane % 3 != 0);
  copy_commit();
  copy_async<8>(memory + 128 + lane * 2, out + 512 + lane * 2, lane % 5 != 0);
  copy_async<4>(memory + 192 + lane, out + 512 + lane);
  copy_commit();
  copy_wait<0>();
  sync_block();
  for (int i = lane; i < 224; i += 32) out[i] = memory[i];
}

// Every block sends its number to the next one.
__global__ void clusters(Word32* out) {
  SEQKERN_DYNAMIC_SHARED(shared);
  auto bar = reinterpret_cast<std::uint64_t*>(shared);
  auto mail = reinterpret_cast<Word32*>(shared + 64);
  int rank = cluster_rank(), size = cluster_size();
  if (threadIdx.x == 0) mbarrier_init(bar, 1);
  sync_cluster();
  if (threadIdx.x == 0) {
    mbarrier_expect(bar, 4);
    store_async(mail, 100u + Word32(rank), bar, (rank + 1) % size);
  }
  mbarrier_wait(bar, 0);
  if (threadIdx.x == 0) {
    out[rank * 3] = mail[0];
    *peer(mail + 1, (rank + 1) % size) = 200u + Word32(rank);
  }
  sync_cluster();
  if (threadIdx.x == 0) out[rank * 3 + 1] = mail[1], out[rank * 3 + 2] = Word32(size);
  sync_cluster();
}

__global__ void powers(Word32* out) {
  for (int i = int(threadIdx.x); i < kWords; i += 32) out[i] = bit_cast<Word32>(exp2_flushed(float(i % 200 - 140)));
}

// Products of a warpgroup over small integers, whose sums are exact, and the barriers beside them.
template <class T>
__global__ void groups(Word32* out) {
#if SEQKERN_HOPPER
  SEQKERN_DYNAMIC_SHARED(shared);
  SEQKERN_SHARED(std::uint64_t, bar, 1);
  auto integer = [](int i) { return float(int(noise(Word32(i)) % 9u) - 4); };
  for (int i = int(threadIdx.x); i < 10240; i += 128) store(reinterpret_cast<T*>(shared) + i, integer(i));
  if (threadIdx.x == 0) mbarrier_init(bar, 128);
  fence_products();
  sync_block();
  const unsigned char *left = shared, *right = shared + 8192, *transposed = shared + 16384;
  float d[32], e[64];
  std::uint32_t a[4];
  for (int i = 0; i < 32; ++i) d[i] = -1;
  for (int i = 0; i < 64; ++i) e[i] = float(i);
  for (int i = 0; i < 4; ++i) a[i] = pack<T>(integer(int(threadIdx.x) * 8 + i), integer(int(threadIdx.x) * 8 + i + 4));
  group_fence();
  SEQKERN_UNROLL
  for (int k = 0; k < 4; ++k) multiply_group<T, 64>(d, operand(left + k * 32), operand(right + k * 32), k > 0);
  group_commit();
  group_fence();
  multiply_group<T, 128>(e, a, operand(transposed, 0, 2048));
  group_commit();
  group_wait<1>(d);
  Word32 hash = 0;
  for (float x : d) hash = hash * 31 + bit_cast<Word32>(x);
  out[threadIdx.x] = hash;
  group_wait<0>(e);
  hash = 0;
  for (float x : e) hash = hash * 31 + bit_cast<Word32>(x);
  out[128 + threadIdx.x] = hash;
  bool before = mbarrier_test(bar, 0);
  sync_block();
  mbarrier_arrive(bar);
  mbarrier_wait(bar, 0);
  out[256 + threadIdx.x] = Word32(before) * 2 + Word32(mbarrier_test(bar, 0));
#else
  (void)out;
#endif
}

// Every block sends a word of 8 bytes to the next one, and one with flags through global memory.
__global__ void words(Word32* out) {
  SEQKERN_DYNAMIC_SHARED(shared);
  auto bar = reinterpret_cast<std::uint64_t*>(shared), mail = bar + 1;
  auto flagged = reinterpret_cast<FlaggedWord*>(out + 512);
  int rank = cluster_rank(), next = (rank + 1) % cluster_size();
  std::uint64_t word = std::uint64_t(noise(Word32(rank))) << 32 | Word32(rank);
  if (threadIdx.x == 0) mbarrier_init(bar, 1);
  sync_cluster();
  if (threadIdx.x) return;
  mbarrier_expect(bar, 8);
  store_async(mail, word, bar, next);
  mbarrier_wait(bar, 0);
  out[rank * 4] = Word32(*mail), out[rank * 4 + 1] = Word32(*mail >> 32);
  store_flagged(flagged + next, word, 7u);
  FlaggedWord got{};
  while (!arrived(got, 7u)) {
    let_others_run();
    load_unless(false, got, flagged + rank);
  }
  out[rank * 4 + 2] = Word32(got.halves[0]), out[rank * 4 + 3] = Word32(got.halves[1]);
}

#if SEQKERN_HOSTCUDA
std::vector<Word32> result(void (*kernel)(Word32*), int blocks, int cluster, int threads) {
  std::vector<Word32> words(kWords);
  launch(Launch{dim3(unsigned(blocks)), dim3(unsigned(threads)), 20480, cluster}, kernel, words.data());
  return words;
}
#else
std::vector<Word32> result(void (*kernel)(Word32*), int blocks, int cluster, int threads) {
  std::vector<Word32> words(kWords);
  Word32* there;
  check(cudaMalloc(&there, kWords * sizeof(Word32)));
  check(cudaMemset(there, 0, kWords * sizeof(Word32)));
  launch(Launch{dim3(unsigned(blocks)), dim3(unsigned(threads)), 20480, cluster}, kernel, there);
  check(cudaMemcpy(words.data(), there, kWords * sizeof(Word32), cudaMemcpyDeviceToHost));
  check(cudaFree(there));
  return words;
}
#endif

void print(const char* name, void (*kernel)(Word32*), int blocks = 1, int threads = 32) {
  Limits most = limits(reinterpret_cast<const void*>(kernel));
  if (blocks > most.max_cluster || (threads > 32 && !most.has_body)) return;
  static const char* separator = "{";
  std::printf("%s\"%s\": [", separator, name);
  separator = ",\n ";
  const char* comma = "";
  for (Word32 w : result(kernel, blocks, blocks, threads)) std::printf("%s%u", comma, w), comma = ",";
  std::printf("]");
}

}  // namespace
}  // namespace seqkern::cuda

int main() {
  using namespace seqkern;
  using namespace seqkern::cuda;
  try {
    print("conversions bf16", conversions<bf16>);
    print("conversions f16", conversions<f16>);
    print("warps", warps_kernel);
    print("matrices bf16", matrices<bf16>);
    print("matrices f16", matrices<f16>);
    print("copies", copies);
    print("powers", powers);
    print("clusters", clusters, 4);
    print("words", words, 4);
    print("groups bf16", groups<bf16>, 1, 128);
    print("groups f16", groups<f16>, 1, 128);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("}\n");
}
