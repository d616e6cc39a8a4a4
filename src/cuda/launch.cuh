// Launching a kernel: the same call under nvcc and on the host. Every failure is a DeviceError.
#pragma once
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
  bool early = false;  // the kernel calls wait_for_previous first; needs compute capability 9.0
};

// What a kernel may ask of a block on the current device. Clusters need the kernel's own code to be of compute
// capability 9.0: code for 8.0 runs on such a device too, translated, and knows none.
struct Limits {
  int max_shared, max_cluster;
  bool has_body;  // of a kernel with static shared memory: false where SEQKERN_HOPPER left it empty
};

#if SEQKERN_HOSTCUDA

inline Limits limits(const void*) { return {hostcuda::config.max_shared, hostcuda::config.max_cluster, true}; }
inline int multiprocessors() { return 2; }

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  auto body = [=] { kernel(arguments...); };
  hostcuda::launch(
      l.blocks, l.threads, l.cluster, l.shared_bytes, [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
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
  int cluster = code.ptxVersion >= 90 ? 8 : 1;  // 8 blocks is the size every such device promises
  return {shared, cluster, code.sharedSizeBytes > 0};
}

inline int multiprocessors() {
  int device, count;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

template <class... Parameters, class... Arguments>
void launch(const Launch& l, void (*kernel)(Parameters...), Arguments... arguments) {
  if (l.shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(l.shared_bytes)));
  cudaLaunchAttribute attribute{};  // one of both at most
  attribute.id = l.early ? cudaLaunchAttributeProgrammaticStreamSerialization : cudaLaunchAttributeClusterDimension;
  if (l.early) attribute.val.programmaticStreamSerializationAllowed = 1;
  else attribute.val.clusterDim = {unsigned(l.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = l.blocks, config.blockDim = l.threads;
  config.dynamicSmemBytes = l.shared_bytes, config.stream = l.stream;
  config.attrs = &attribute, config.numAttrs = l.early || l.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#endif

}  // namespace seqkern::cuda
