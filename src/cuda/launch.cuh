// Launching a kernel: the same call under nvcc and on the host. Every failure is a DeviceError.
#pragma once
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cuda/device.cuh"

namespace seqkern::cuda {

struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  dim3 blocks, threads;
  std::size_t shared_bytes = 0;
  int cluster = 1;  // blocks.x must be a multiple; more than 1 needs compute capability 9.0
  cudaStream_t stream = nullptr;
  bool together = false;  // all blocks at the same time, so that they may wait for each other; or an error
};

// What a kernel may ask of a block on the current device, besides its static shared memory. Clusters need the kernel's own code to be of compute
// capability 9.0: code for 8.0 runs on such a device too, translated, and knows none.
struct Limits {
  int max_shared, max_cluster;
  bool has_body;  // of a kernel with static shared memory: false where SEQKERN_HOPPER left it empty
};

inline constexpr int kPortableCluster = 8;  // the size every device that knows clusters promises

#if SEQKERN_HOSTCUDA

inline int active_clusters(const void*, int cluster, int, std::size_t) {
  return cluster <= hostcuda::config.max_cluster ? 1 << 16 : 0;
}
inline index_t blocks_together(const void*, int, std::size_t) { return hostcuda::config.max_together; }
inline void clear(void* to, std::size_t bytes, cudaStream_t) { std::memset(to, 0, bytes); }
inline Limits limits(const void*) { return {hostcuda::config.max_shared, hostcuda::config.max_cluster, true}; }
inline int multiprocessors() { return 2; }

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  auto body = [=] { kernel(arguments...); };
  hostcuda::launch(
      l.blocks, l.threads, l.cluster, l.together, l.shared_bytes, [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
}

#else

// What a failure means to the caller, in one sentence.
inline std::string meaning(cudaError_t error) {
  int driver = 0, runtime = 0;
  auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (error == cudaErrorNoDevice) return "no CUDA device";
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return "no CUDA device: no NVIDIA driver is installed";
  if (error == cudaErrorInsufficientDriver && cudaRuntimeGetVersion(&runtime) == cudaSuccess)
    return "the NVIDIA driver is too old: it knows CUDA " + version(driver) + ", this build needs " + version(runtime);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    return "this build has no code for the device's architecture: build with SEQKERN_CUDA_ARCHITECTURES";
  return cudaGetErrorString(error);
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw DeviceError("CUDA: " + meaning(error));
}

inline Limits limits(const void* kernel) {
  int device, shared;
  cudaFuncAttributes code;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaFuncGetAttributes(&code, kernel));
  return {shared - int(code.sharedSizeBytes), code.ptxVersion >= 90 ? kPortableCluster : 1, code.sharedSizeBytes > 0};
}

inline int multiprocessors() {
  int device, count;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// How many clusters of this size, of blocks so large, the device runs at once; 0: none.
inline int active_clusters(const void* kernel, int cluster, int threads, std::size_t shared_bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes, config.attrs = &attribute, config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

// How many blocks the device runs at the same time.
inline index_t blocks_together(const void* kernel, int threads, std::size_t shared_bytes) {
  int device, processors, each = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes));
  return index_t(processors) * each;
}
inline void clear(void* to, std::size_t bytes, cudaStream_t stream) { check(cudaMemsetAsync(to, 0, bytes, stream)); }

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  if (l.shared_bytes > 16 * 1024)  // more than 48 KB, the static ones counted in, has to be asked for
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(l.shared_bytes)));
  if (l.cluster > kPortableCluster)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute attribute{};
  if (l.together) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = unsigned(l.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = l.blocks, config.blockDim = l.threads;
  config.dynamicSmemBytes = l.shared_bytes, config.stream = l.stream;
  config.attrs = &attribute, config.numAttrs = l.cluster > 1 || l.together ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#endif

}  // namespace seqkern::cuda
