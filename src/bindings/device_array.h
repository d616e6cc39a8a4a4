// What py::array is where the kernels are CUDA's: the bindings' own text, over arrays that lie on a device.
//
// Any object with __cuda_array_interface__ (CuPy, torch, Numba) or with DLPack's protocol. No element is read here.
// New arrays are made by the library that device::arrays() names, on its current device and stream.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "seqkern/types.h"

namespace seqkern {

class DeviceArray : public pybind11::object {
 public:
  static bool check_(pybind11::handle object) { return bool(DeviceArray(object, borrowed_t{})); }
  DeviceArray(pybind11::handle object, borrowed_t);  // null for what is no array of a device
  DeviceArray(pybind11::handle object, stolen_t);
  explicit DeviceArray(const pybind11::object& object) : DeviceArray(object, borrowed_t{}) {}
  DeviceArray(const pybind11::dtype& dtype, const std::vector<index_t>& shape);

  pybind11::dtype dtype() const { return dtype_; }
  pybind11::ssize_t ndim() const { return pybind11::ssize_t(shape_.size()); }
  const index_t* shape() const { return shape_.data(); }
  index_t shape(pybind11::ssize_t i) const { return shape_[std::size_t(i)]; }
  index_t strides(pybind11::ssize_t i) const { return strides_[std::size_t(i)]; }
  index_t size() const;
  index_t itemsize() const { return dtype_.itemsize(); }
  const void* data() const { return data_; }
  void* mutable_data() const { return data_; }
  bool writeable() const { return !read_only_; }
  int flags() const;                      // of NPY_ARRAY_*: C_CONTIGUOUS and ALIGNED
  int device() const { return device_; }  // -1: not known

 private:
  void describe();
  void describe_own();

  pybind11::dtype dtype_ = pybind11::reinterpret_steal<pybind11::dtype>(pybind11::handle());
  std::vector<index_t> shape_, strides_;
  void* data_ = nullptr;
  bool read_only_ = false;
  int device_ = -1;
};

// The only place that knows which device it is: cuda_device.cpp for a GPU, tests/hostcuda/device.cpp for the host.
namespace device {

pybind11::module_ arrays();                              // CuPy
bool is_own(pybind11::handle object);                    // an array of that library: in order with its stream
pybind11::object interface_of(pybind11::handle object);  // a dict as of __cuda_array_interface__, or None
void* stream();                                          // the current one
void wait_for(pybind11::handle stream);                  // that of an interface: None, or a number
// Memory of the current device, or ValueError; `device` is the memory's, or -1 where that is not known.
void expect_here(const std::string& what, const void* data, int device);
pybind11::object workspace(std::size_t bytes, void** memory);  // 256-byte aligned
pybind11::array on_host(pybind11::handle array);               // a copy, which waits for the device
pybind11::dict information();

}  // namespace device

// pybind11, but for its array.
namespace py {
using namespace pybind11;
using array = DeviceArray;
}  // namespace py

inline void count_allocation() {}  // the CPU's hook for its tests
inline class FrozenWeight* frozen(const py::array&) { return nullptr; }

// Runs a kernel: see cuda_kernels.cpp.
template <class Kernel, class Params>
void call(Kernel kernel, const Params& params) {
  kernel(params);
}

}  // namespace seqkern
