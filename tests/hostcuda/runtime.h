// The CUDA runtime for kernels that run on the host: src/cuda/device.cuh includes this instead of CUDA's headers
// when the compiler is not nvcc.
//
// Every CUDA thread is a fiber; the blocks of a cluster run together, clusters one after another. A fiber runs
// until it meets a barrier, a warp collective or a poll that fails, so what a kernel gets wrong shows the same
// way every time, in each of three thread orders. Shared memory starts as NaN between guard zones; copies take
// effect at once or as late as the waits allow. What is wrong throws from launch: a deadlock, a divergent
// collective, an overrun, a misaligned access.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

// Rewritten whenever a fiber is resumed.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace hostcuda {

enum class Order { forward, reverse, random };
struct Config {
  Order order = Order::forward;
  std::uint64_t seed = 1;
  bool deferred = false;  // asynchronous copies land at the wait, not at the issue
  int max_shared = 227 * 1024, max_cluster = 8, max_together = 0;  // the device pretended; blocks at the same time
};
extern Config config;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// body(context) once per thread of every block. together: all blocks run at the same time, none in a cluster.
using Body = void (*)(void* context);
void launch(dim3 grid, dim3 block, int cluster, bool together, std::size_t shared_bytes, Body body, void* context);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void check_aligned(const void* p, std::size_t bytes, const char* what);

void* dynamic_shared();
void* static_shared(const void* key, std::size_t bytes);  // the block's array of that declaration

int lane();
unsigned cluster_rank(), cluster_size();
// The same place in another block's shared memory; `p` must lie in this block's dynamic shared memory.
void* peer(const void* p, unsigned rank);

void barrier(int id, int threads, bool wait, const char* what);  // threads 0: every live thread of the block
void cluster_barrier();

// Every lane of `mask` hands in its operands and a place for its result; the last to arrive combines them all.
// `combine` runs on behalf of all: what it touches is no access of the last lane's (HOSTCUDA_FOR_ALL).
#define HOSTCUDA_FOR_ALL __attribute__((no_sanitize("thread")))
using Combine = void (*)(std::uint32_t mask, void* const* in, void* const* out);
void collective(std::uint32_t mask, const char* what, void* in, void* out, Combine combine);

// Words with flags in global memory: what the reader of one may know, and a turn for those it waits for.
void publish_to_all(void* word);
void observe_all(const void* word);
void let_others_run();

// Tells of a read that `combine` does for this lane.
void read_shared(const void* p, std::size_t bytes);

// cp.async of the calling thread
void copy_async(void* to, const void* from, int bytes, int from_bytes);
void commit_async();
void wait_async(int pending_groups);

// mbarriers, and stores that arrive on one
void mbarrier_init(std::uint64_t* bar, int count);
void mbarrier_arrive(std::uint64_t* bar, int expected_bytes);
bool mbarrier_done(std::uint64_t* bar, int parity);  // false lets others run first
void store_async(void* to, const void* value, int bytes, std::uint64_t* bar);

// Warpgroup matrix products of the calling warp (wgmma.cpp).
struct Wgmma {
  int columns;
  bool transposed, accumulate;  // B: its columns adjacent
  std::uint64_t a, b;           // descriptors
  const std::uint32_t* left;    // [4], A from registers; null: from shared memory
  float* d;                     // [columns / 2]
  float (*value)(std::uint16_t);
  const unsigned char* shared = nullptr;
};
void wgmma(const Wgmma&);
void wgmma_commit();
void wgmma_wait(int pending_groups);
std::uint64_t this_run();  // of a cluster of blocks

}  // namespace hostcuda
