// The device of _hostcuda: the host. Arrays are NumPy's, or those of a library that offers __cuda_array_interface__
// over the host's memory (tests/support/fake_cupy.py), which `use_arrays` names.
#include <cstring>

#include "bindings/device_array.h"

namespace seqkern::device {
namespace {

std::string library = "numpy";
constexpr std::uintptr_t kAlignment = 256;

}  // namespace

void use_arrays(const std::string& name) { library = name; }

pybind11::module_ arrays() { return pybind11::module_::import(library.c_str()); }

bool is_own(pybind11::handle) { return false; }

pybind11::array on_host(pybind11::handle array) {
  return pybind11::hasattr(array, "get") ? array.attr("get")() : pybind11::reinterpret_borrow<pybind11::object>(array);
}

pybind11::object interface_of(pybind11::handle object) {
  pybind11::object interface = pybind11::getattr(object, "__cuda_array_interface__", pybind11::none());
  if (!interface.is_none() || library != "numpy" || !pybind11::isinstance<pybind11::array>(object)) return interface;
  interface = object.attr("__array_interface__");  // of one form
  pybind11::dtype dtype = pybind11::reinterpret_borrow<pybind11::array>(object).dtype();
  if (dtype.kind() != 'V') interface["typestr"] = dtype.attr("str");
  return interface;
}

void* stream() { return nullptr; }
void wait_for(pybind11::handle) {}
void expect_here(const std::string&, const void*, int) {}

// NaN, so that reading what nobody wrote shows.
pybind11::object workspace(std::size_t bytes, void** memory) {
  pybind11::array_t<unsigned char> array{pybind11::ssize_t(bytes + kAlignment)};
  std::memset(array.mutable_data(), 0xff, bytes + kAlignment);
  auto start = reinterpret_cast<std::uintptr_t>(array.mutable_data());
  *memory = reinterpret_cast<void*>((start + kAlignment - 1) / kAlignment * kAlignment);
  return array;
}

pybind11::dict information() { return {}; }

}  // namespace seqkern::device
