#include "array.h"

#include <cstring>

#if defined(SEQKERN_DEVICE_ARRAYS)
#include "seqkern/indices.h"
#else
#include "result_memory.h"
#endif

namespace seqkern {
namespace {

std::string describe(const char* op, const char* name) { return std::string(op) + ": " + name; }

std::string dtype_text(const py::array& a) { return py::str(a.dtype()); }

bool native(const py::dtype& d) { return d.byteorder() != (PY_LITTLE_ENDIAN ? '>' : '<'); }

void expect_dims(const char* op, const char* name, const py::array& a, std::initializer_list<Dim> dims) {
  bool same = a.ndim() == py::ssize_t(dims.size());
  int i = 0;
  for (auto& d : dims) same = same && a.shape(i++) == d.size;
  if (same) return;
  Shape sizes;
  std::string names;
  for (auto& d : dims) {
    names += (names.empty() ? "" : ", ") + std::string(d.name);
    sizes.push_back(d.size);
  }
  expect_shape(op, name, a, sizes, ("[" + names + "] = ").c_str());
}

index_t as_index(const void* p, int size, bool is_signed) {
  auto read = [p]<class T>(T v) {
    std::memcpy(&v, p, sizeof v);
    return index_t(v);
  };
  switch (size) {
    case 1: return is_signed ? read(std::int8_t{}) : read(std::uint8_t{});
    case 2: return is_signed ? read(std::int16_t{}) : read(std::uint16_t{});
    case 4: return is_signed ? read(std::int32_t{}) : read(std::uint32_t{});
    default: return read(std::int64_t{});
  }
}

#if defined(SEQKERN_DEVICE_ARRAYS)
constexpr const char* kArray = "a CUDA array (CuPy's, or torch's on the GPU)";
constexpr const char* kTypes = "float32, float64, bfloat16 or float16";
constexpr int kHalf = 23;  // NPY_HALF
#else
constexpr const char* kArray = "a NumPy array";
constexpr const char* kTypes = "float32, float64 or bfloat16";
#endif

std::vector<index_t> integers_on_host(const pybind11::array& a) {
  pybind11::array flat = a.attr("reshape")(-1).cast<pybind11::array>();
  bool is_signed = flat.dtype().kind() == 'i';
  int item = int(flat.itemsize());
  std::vector<index_t> values(std::size_t(flat.size()));
  const char* p = static_cast<const char*>(flat.data());
  for (index_t i = 0; i < index_t(values.size()); ++i)
    values[std::size_t(i)] = as_index(p + i * flat.strides(0), item, is_signed);
  return values;
}

}  // namespace

py::array as_array(const char* op, const char* name, py::handle object) {
#if defined(SEQKERN_DEVICE_ARRAYS)
  auto a = py::reinterpret_borrow<py::array>(object);  // null for what is none
#else
  auto a = py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object) : no_array();
#endif
  if (!a)
    throw py::type_error(describe(op, name) + " must be " + kArray + ", got " +
                         std::string(py::str(py::type::of(object).attr("__name__"))));
  if (!native(a.dtype()))
    throw py::type_error(describe(op, name) + " must be in native byte order, got dtype " + dtype_text(a));
#if defined(SEQKERN_DEVICE_ARRAYS)
  if (a.size()) device::expect_here(describe(op, name), a.data(), a.device());
#endif
  return a;
}

std::string shape_text(const Shape& shape) {
  std::string text;
  for (index_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    default: return "float16";
  }
}

Array::Array(const char* op, const char* name, py::handle object, bool optional) : op_(op), name_(name) {
  if (optional && object.is_none()) return;
  array_ = as_array(op, name, object);
  int num = array_.dtype().num();
  static int bf16_num = -1;
  if (num == py::detail::npy_api::NPY_FLOAT_) dtype_ = DType::f32;
  else if (num == py::detail::npy_api::NPY_DOUBLE_) dtype_ = DType::f64;
  else if (num == bf16_num) dtype_ = DType::bf16;
  else if (num >= 256 && std::string(py::str(array_.dtype())) == "bfloat16") bf16_num = num, dtype_ = DType::bf16;
#if defined(SEQKERN_DEVICE_ARRAYS)
  else if (num == kHalf) dtype_ = DType::f16;
#endif
  else throw py::type_error(describe(op, name) + " must be " + kTypes + ", got " + dtype_text(array_));
}

void Array::fail(const std::string& what) const { throw py::value_error(describe(op_, name_) + what); }

void Array::expect_rank(int want, const char* layout) const {
  if (rank() != want) fail(std::string(" must be ") + layout + ", got shape " + shape_text(shape_of(array_)));
}

void Array::expect(std::initializer_list<Dim> dims) const {
  if (array_) expect_dims(op_, name_, array_, dims);
}

void Array::expect_dtype(DType want) const {
  if (array_ && dtype_ != want)
    throw py::type_error(describe(op_, name_) + " must be " + dtype_name(want) + ", got " + dtype_text(array_));
}

void Array::expect_accumulator(DType want, bool or_bf16) const {
  if (!array_ || dtype_ == accumulator(want) || (or_bf16 && dtype_ == DType::bf16)) return;
  throw py::type_error(describe(op_, name_) + " must be " + dtype_name(accumulator(want)) +
                       (or_bf16 ? " or bfloat16" : "") + ", got " + dtype_text(array_));
}

const void* Array::data() {
  if (!array_) return nullptr;
  constexpr int kNeeded = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array_.flags() & kNeeded) != kNeeded) {
    count_allocation();
    array_ = array_.attr("copy")("C").cast<py::array>();
  }
  return array_.data();
}

const void* Array::accumulator_data() {
  if (array_ && dtype_ == DType::bf16) {
    count_allocation();
    array_ = array_.attr("astype")(seqkern::numpy_dtype(DType::f32)).cast<py::array>();
    dtype_ = DType::f32;
  }
  return data();
}

void* Array::writable() {
  if (!array_) return nullptr;
  if (!array_.writeable()) fail(" must be writable, got a read-only array");
  constexpr int kNeeded = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array_.flags() & kNeeded) != kNeeded) fail(" must be contiguous and aligned, since it is updated in place");
  return array_.mutable_data();
}

Integers::Integers(const char* op, const char* name, py::handle object, bool optional) : op_(op), name_(name) {
  if (optional && object.is_none()) return;
  array_ = as_array(op, name, object);
  char kind = array_.dtype().kind();
  if (kind != 'i' && kind != 'u')
    throw py::type_error(describe(op, name) + " must be an integer array, got " + dtype_text(array_));
  present_ = true;
}

void Integers::expect(std::initializer_list<Dim> dims) const {
  if (present_) expect_dims(op_, name_, array_, dims);
}

#if defined(SEQKERN_DEVICE_ARRAYS)
void Integers::expect_between(index_t low, index_t high, index_t also) {
  if (!present_) return;
  py::array from = array_;
  if (!(from.flags() & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_)) from = array_.attr("copy")("C").cast<py::array>();
  taken_ = empty(py::dtype::of<index_t>(), shape_of(array_));
  cuda::take_indices({int(from.itemsize()), from.dtype().kind() == 'i', from.size(), low, high, also, from.data(),
                      static_cast<index_t*>(taken_.mutable_data())},
                     device::stream());
}
const index_t* Integers::data() const { return present_ ? static_cast<const index_t*>(taken_.data()) : nullptr; }
const std::vector<index_t>& Integers::values() {
  if (present_ && values_.empty()) values_ = integers_on_host(device::on_host(array_));
  return values_;
}
#else
void Integers::expect_between(index_t low, index_t high, index_t also) {
  if (!present_) return;
  count_allocation();
  values_ = integers_on_host(array_);
  for (std::size_t i = 0; i < values_.size(); ++i) {
    index_t v = values_[i];
    if ((v < low || v > high) && v != also)
      throw py::value_error(describe(op_, name_) + " must lie in [" + std::to_string(low) + ", " +
                            std::to_string(high) + "], got " + std::to_string(v) + " at position " + std::to_string(i));
  }
}
const index_t* Integers::data() const { return present_ ? values_.data() : nullptr; }
const std::vector<index_t>& Integers::values() { return values_; }
#endif

void expect_shape(const char* op, const char* name, const Shape& got, const Shape& want, const char* meaning) {
  if (got != want)
    throw py::value_error(describe(op, name) + " must be " + meaning + shape_text(want) + ", got " + shape_text(got));
}

Precision as_precision(const char* op, std::string_view name) {
  if (name == "highest") return Precision::highest;
  if (name == "high") return Precision::high;
  if (name == "medium") return Precision::medium;
  throw py::value_error(describe(op, "precision") + " must be 'highest', 'high' or 'medium', got '" +
                        std::string(name) + "'");
}

py::array empty(const py::dtype& dtype, std::initializer_list<index_t> shape) { return empty(dtype, Shape(shape)); }
py::array empty(const py::dtype& dtype, const Shape& shape) {
  count_allocation();
#if defined(SEQKERN_DEVICE_ARRAYS)
  return py::array(dtype, shape);
#else
  return result_array(dtype, shape);
#endif
}

py::dtype numpy_dtype(DType dtype) { return dtype == DType::f64 ? py::dtype::of<double>() : py::dtype::of<float>(); }

}  // namespace seqkern
