// The border between Python and the kernels: every rank, dimension, dtype, byte order and type of array is
// checked here, with an error that names the operation, the argument, what was expected and what came.
// Shapes are checked before any array is read or copied.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "seqkern/types.h"
#if defined(SEQKERN_DEVICE_ARRAYS)
#include "device_array.h"
#else
#include "cpu/thread_pool.h"
#endif

namespace seqkern {

class FrozenWeight;

#if !defined(SEQKERN_DEVICE_ARRAYS)
namespace py = pybind11;

// Runs a kernel without the interpreter lock.
template <class Kernel, class Params>
void call(Kernel kernel, const Params& params) {
  py::gil_scoped_release release;
  kernel(params);
}
#endif

// py::array's own default is an array of its own, which costs as much as a small kernel.
inline py::array no_array() { return py::reinterpret_steal<py::array>(py::handle()); }

struct Dim {
  const char* name;
  index_t size;
};

using Shape = std::vector<index_t>;

std::string shape_text(const Shape& shape);
inline std::string shape_text(const index_t* sizes, int rank) { return shape_text(Shape(sizes, sizes + rank)); }

// The object as an array, native and on the device where the kernels run; its elements may be of any type.
py::array as_array(const char* op, const char* name, py::handle object);

// One array argument, or none. Holds a reference; `data` is contiguous, aligned memory once taken.
class Array {
 public:
  Array() = default;
  // Checks that it is a NumPy array of a type the kernels know; None is allowed when `optional`.
  Array(const char* op, const char* name, py::handle object, bool optional = false);

  explicit operator bool() const { return bool(array_); }
  int rank() const { return int(array_.ndim()); }
  index_t size(int i) const { return array_.shape(i); }
  DType dtype() const { return dtype_; }
  py::dtype numpy_dtype() const { return array_.dtype(); }

  void expect_rank(int rank, const char* layout) const;
  void expect(std::initializer_list<Dim> dims) const;  // nothing to check when absent
  void expect_dtype(DType dtype) const;
  // The accumulator of this type, or bf16 where `or_bf16`, then widened to f32: biases, peepholes and cell states.
  void expect_accumulator(DType dtype, bool or_bf16) const;

  const void* data();              // null when absent
  const void* accumulator_data();  // as f32 or f64
  void* writable();                // must be contiguous, aligned and writable
  const py::array& array() const { return array_; }

 private:
  [[noreturn]] void fail(const std::string& what) const;

  const char* op_ = "";
  const char* name_ = "";
  py::array array_ = no_array();
  DType dtype_ = DType::f32;
};

const char* dtype_name(DType dtype);
inline DType accumulator(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

// int64 copy of an integer array whose values lie in [low, high], or equal `also`. On a device that is no error but
// made true: others become low or high, since to look at them would be to wait for the device.
class Integers {
 public:
  Integers() = default;
  Integers(const char* op, const char* name, py::handle object, bool optional = false);
  void expect(std::initializer_list<Dim> dims) const;
  void expect_between(index_t low, index_t high) { expect_between(low, high, low); }
  void expect_between(index_t low, index_t high, index_t also);
  int rank() const { return int(array_.ndim()); }
  index_t count() const { return array_.size(); }
  const py::array& array() const { return array_; }
  const index_t* data() const;  // what the kernels get
  // On the host: of a device's array, which it waits for, a copy.
  const std::vector<index_t>& values();

 private:
  const char* op_ = "";
  const char* name_ = "";
  bool present_ = false;
  py::array array_ = no_array(), taken_ = no_array();
  std::vector<index_t> values_;
};

inline Shape shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }
inline Shape shape_of(const Array& a) { return shape_of(a.array()); }
inline Shape shape_of(const Integers& a) { return shape_of(a.array()); }

// ValueError unless an array of shape `got` has the shape `want`; `meaning` says which, e.g. "the shape of x, ".
void expect_shape(const char* op, const char* name, const Shape& got, const Shape& want, const char* meaning = "");
template <class A>
void expect_shape(const char* op, const char* name, const A& a, const Shape& want, const char* meaning = "") {
  expect_shape(op, name, shape_of(a), want, meaning);
}

Precision as_precision(const char* op, std::string_view name);

#if !defined(SEQKERN_DEVICE_ARRAYS)
FrozenWeight* frozen(const py::array& a);  // whose memory this is, all of it; or null
#endif

py::array empty(const py::dtype& dtype, std::initializer_list<index_t> shape);
py::array empty(const py::dtype& dtype, const Shape& shape);
py::dtype numpy_dtype(DType dtype);  // f32 or f64

void register_recurrent(py::module_&);
void register_layers(py::module_&);
void register_linear(py::module_&);
void register_conv(py::module_&);
void register_elementwise(py::module_&);
void register_activation(py::module_&);
void register_layer_norm(py::module_&);
void register_batch_norm(py::module_&);
void register_rope(py::module_&);
void register_attention(py::module_&);
void register_attention_paged(py::module_&);
void register_runtime(py::module_&);
void register_frozen(py::module_&);
void register_cuda(py::module_&);  // those that have CUDA kernels

}  // namespace seqkern
