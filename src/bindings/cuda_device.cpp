// The device of _cuda: CuPy's arrays and streams, and the CUDA runtime's word on whose memory it is.
#include <pybind11/gil_safe_call_once.h>

#include "device_array.h"

#include "cuda/launch.cuh"

namespace seqkern::device {
namespace {

int current() {
  int device;
  cuda::check(cudaGetDevice(&device));
  return device;
}

// What is looked up once.
struct Cupy {
  pybind11::module_ module = pybind11::module_::import("cupy");
  pybind11::object ndarray = module.attr("ndarray"), empty = module.attr("empty");
  pybind11::object current_stream = module.attr("cuda").attr("get_current_stream");
};
const Cupy& cupy() {
  PYBIND11_CONSTINIT static pybind11::gil_safe_call_once_and_store<Cupy> found;
  try {
    return found.call_once_and_store_result([] { return Cupy(); }).get_stored();
  } catch (pybind11::error_already_set& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    throw pybind11::import_error("seqkern on a GPU needs CuPy: pip install 'seqkern[cuda13]' or 'seqkern[cuda12]'");
  }
}

// Records on one stream what the other then waits for; the host waits for neither.
void order(cudaStream_t first, cudaStream_t then) {
  cudaEvent_t done;
  cuda::check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming));
  cudaError_t error = cudaEventRecord(done, first);
  if (error == cudaSuccess) error = cudaStreamWaitEvent(then, done, 0);
  cuda::check(cudaEventDestroy(done));
  cuda::check(error);
}

}  // namespace

pybind11::module_ arrays() { return cupy().module; }

bool is_own(pybind11::handle object) {
  return Py_TYPE(object.ptr()) == reinterpret_cast<PyTypeObject*>(cupy().ndarray.ptr());
}

pybind11::array on_host(pybind11::handle array) { return arrays().attr("asnumpy")(array); }

pybind11::object interface_of(pybind11::handle object) {
  return pybind11::getattr(object, "__cuda_array_interface__", pybind11::none());
}

void* stream() { return reinterpret_cast<void*>(cupy().current_stream().attr("ptr").cast<std::uintptr_t>()); }

void wait_for(pybind11::handle theirs) {
  if (theirs.is_none()) return;
  auto first = theirs.cast<std::uintptr_t>();  // 1 and 2: the legacy and the per-thread default stream, as in CUDA
  auto then = reinterpret_cast<std::uintptr_t>(stream());
  if (first == then || (first == 1 && then == 0)) return;
  order(reinterpret_cast<cudaStream_t>(first), reinterpret_cast<cudaStream_t>(then));
}

void expect_here(const std::string& what, const void* data, int device) {
  if (device < 0) {
    cudaPointerAttributes memory;
    cuda::check(cudaPointerGetAttributes(&memory, data));
    if (memory.type == cudaMemoryTypeUnregistered || memory.type == cudaMemoryTypeHost)
      throw pybind11::value_error(what + " must lie in a device's memory, got memory of the host");
    if (memory.type != cudaMemoryTypeDevice) return;
    device = memory.device;
  }
  if (device != current())
    throw pybind11::value_error(what + " must be on the current device, " + std::to_string(current()) +
                                ", got an array on device " + std::to_string(device) +
                                ": make that the current one with cupy.cuda.Device");
}

pybind11::object workspace(std::size_t bytes, void** memory) {
  pybind11::object array = cupy().empty(bytes, "u1");  // from CuPy's pool, whose blocks suit any type
  *memory = reinterpret_cast<void*>(array.attr("data").attr("ptr").cast<std::uintptr_t>());
  return array;
}

// Asks the driver for the first time: RuntimeError says why there is no device.
pybind11::dict information() {
  int count = 0, driver = 0, runtime = 0;
  cuda::check(cudaGetDeviceCount(&count));
  cuda::check(cudaDriverGetVersion(&driver));
  cuda::check(cudaRuntimeGetVersion(&runtime));
  cudaDeviceProp device;
  cuda::check(cudaGetDeviceProperties(&device, current()));
  pybind11::dict found;
  found["count"] = count;
  found["name"] = device.name;
  found["capability"] = pybind11::make_tuple(device.major, device.minor);
  found["memory"] = device.totalGlobalMem;
  found["driver"] = driver;
  found["runtime"] = runtime;
  return found;
}

}  // namespace seqkern::device
