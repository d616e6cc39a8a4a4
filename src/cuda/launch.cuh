// Launching a kernel: the same call under nvcc and on the host. Every failure is a DeviceError.
#pragma once
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>

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
  bool early = false;  // the kernel calls wait_for_previous first; needs compute capability 9.0
};

// What a kernel may ask of a block on the current device, besides its static shared memory. Clusters need the kernel's
// own code to be of compute capability 9.0: code for 8.0 runs on such a device too, translated, and knows none.
struct Limits {
  int max_shared, max_cluster;
  bool has_body;  // false where SEQKERN_HOPPER left it empty: such a kernel takes next to no registers
};

inline constexpr int kPortableCluster = 8;  // the size every device that knows clusters promises

#if SEQKERN_HOSTCUDA

inline int active_clusters(const void*, int cluster, int, std::size_t) {
  return cluster <= hostcuda::config.max_cluster ? 1 << 16 : 0;
}
inline Limits limits(const void*) {
  return {hostcuda::config.max_shared, hostcuda::config.max_cluster, hostcuda::config.max_cluster > 1};
}
inline index_t blocks_together(const void*, int, std::size_t) { return hostcuda::config.max_together; }
inline void clear(void* to, std::size_t bytes, cudaStream_t) { std::memset(to, 0, bytes); }
inline int multiprocessors() { return 2; }

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  auto body = [=] { kernel(arguments...); };
  auto call = [](void* f) { (*static_cast<decltype(body)*>(f))(); };
  hostcuda::launch(l.blocks, l.threads, l.cluster, l.together, l.shared_bytes, call, &body);
}

#else

// What a failure means to the caller and what to do about it, in one sentence.
inline std::string meaning(cudaError_t error) {
  int driver = 0, runtime = 0, device = 0, major = 0, minor = 0;
  auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (error == cudaErrorNoDevice)
    return "no CUDA device: nvidia-smi must list one, and CUDA_VISIBLE_DEVICES not hide it";
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return "no CUDA device: no NVIDIA driver is installed";
  if (error == cudaErrorInsufficientDriver && cudaRuntimeGetVersion(&runtime) == cudaSuccess)
    return "the NVIDIA driver is too old: it knows CUDA " + version(driver) + ", this build needs " + version(runtime) +
           "; update the driver, or build with an older CUDA toolkit";
  if (error == cudaErrorInvalidResourceHandle)
    return "a stream belongs to another device than the current one: make both current with cupy.cuda.Device";
  bool old_driver = error == cudaErrorUnsupportedPtxVersion;
  if (old_driver || error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    std::string is = std::to_string(major) + "." + std::to_string(minor), of = "compute capability ";
    if (major < 8) return "the device is of " + of + is + ", the kernels need 8.0";
    return (old_driver ? "the NVIDIA driver is too old to translate this build for " + of + is + ": update it, or"
                       : "this build has no code for " + of + is + ":") +
           " build with SEQKERN_CUDA_ARCHITECTURES=" + std::to_string(10 * major + minor);
  }
  return cudaGetErrorString(error);
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (error == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw DeviceError("CUDA: " + meaning(error));
}

// What ask(device, kernel, details...) says on the current device. It is asked once: asking takes the driver as long as
// a small kernel runs.
template <class Answer, class... Details>
Answer once(Answer (*ask)(int, const void*, Details...), const void* kernel, Details... details) {
  using Question = std::tuple<decltype(ask), int, const void*, Details...>;
  static std::mutex mutex;
  static std::map<Question, Answer> known;
  Question question{ask, 0, kernel, details...};
  check(cudaGetDevice(&std::get<1>(question)));
  std::lock_guard lock(mutex);
  auto at = known.find(question);
  if (at == known.end()) at = known.emplace(question, ask(std::get<1>(question), kernel, details...)).first;
  return at->second;
}

inline Limits ask_limits(int device, const void* kernel) {
  int shared;
  cudaFuncAttributes code;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaFuncGetAttributes(&code, kernel));
  return {shared - int(code.sharedSizeBytes), code.ptxVersion >= 90 ? kPortableCluster : 1, code.numRegs > 32};
}
inline Limits limits(const void* kernel) { return once(ask_limits, kernel); }

inline int ask_multiprocessors(int device, const void*) {
  int count;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}
inline int multiprocessors() { return once(ask_multiprocessors, nullptr); }

// Lets a kernel have all the shared memory there is, and clusters of more than the portable size.
inline bool ask_for_all(int, const void* kernel) {
  Limits most = limits(kernel);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most.max_shared));
  if (most.max_cluster > 1) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  return true;
}

inline cudaLaunchAttribute cluster_attribute(int cluster) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = unsigned(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

inline int ask_active_clusters(int, const void* kernel, int cluster, int threads, std::size_t shared_bytes) {
  once(ask_for_all, kernel);
  auto attribute = cluster_attribute(cluster);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(cluster)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes, config.attrs = &attribute, config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}
// How many clusters of this size, of blocks so large, the device runs at once; 0: none.
inline int active_clusters(const void* kernel, int cluster, int threads, std::size_t shared_bytes) {
  return once(ask_active_clusters, kernel, cluster, threads, shared_bytes);
}

inline int ask_blocks_together(int, const void* kernel, int threads, std::size_t shared_bytes) {
  once(ask_for_all, kernel);
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes));
  return multiprocessors() * each;
}
// How many blocks the device runs at the same time.
inline index_t blocks_together(const void* kernel, int threads, std::size_t shared_bytes) {
  return once(ask_blocks_together, kernel, threads, shared_bytes);
}
inline void clear(void* to, std::size_t bytes, cudaStream_t stream) { check(cudaMemsetAsync(to, 0, bytes, stream)); }

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  // More shared memory than 48 KB, the static counted in, has to be asked for.
  if (l.shared_bytes > 16 * 1024 || l.cluster > 1) once(ask_for_all, reinterpret_cast<const void*>(kernel));
  auto attribute = cluster_attribute(l.cluster);  // one of the three at most
  if (l.together) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  } else if (l.early) {
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = l.blocks, config.blockDim = l.threads;
  config.dynamicSmemBytes = l.shared_bytes, config.stream = l.stream;
  config.attrs = &attribute, config.numAttrs = l.cluster > 1 || l.together || l.early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#endif

}  // namespace seqkern::cuda
