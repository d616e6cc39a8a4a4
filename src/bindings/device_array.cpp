#include "device_array.h"

#include <pybind11/stl.h>

namespace seqkern {
namespace {

pybind11::object attribute(pybind11::handle object, const char* name) {
  return pybind11::getattr(object, name, pybind11::none());
}

// ml_dtypes' bfloat16 has no letter of its own: libraries agree on two plain bytes.
pybind11::dtype known(pybind11::dtype dtype) {
  if (dtype.kind() != 'V' || dtype.itemsize() != 2) return dtype;
  return pybind11::dtype::from_args(pybind11::module_::import("ml_dtypes").attr("bfloat16"));
}

std::vector<index_t> numbers(const pybind11::tuple& from) {
  std::vector<index_t> to(from.size());
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = from[i].cast<index_t>();
  return to;
}

}  // namespace

DeviceArray::DeviceArray(pybind11::handle object, borrowed_t) : pybind11::object(object, borrowed_t{}) { describe(); }
DeviceArray::DeviceArray(pybind11::handle object, stolen_t) : pybind11::object(object, stolen_t{}) { describe(); }
DeviceArray::DeviceArray(const pybind11::dtype& dtype, const std::vector<index_t>& shape)
    : pybind11::object(device::arrays().attr("empty")(pybind11::tuple(pybind11::cast(shape)), dtype)) {
  describe();
}

// The attributes themselves: the dict of an interface, made anew each time, takes longer than a small kernel.
void DeviceArray::describe_own() {
  dtype_ = known(pybind11::reinterpret_borrow<pybind11::dtype>(attr("dtype")));
  shape_ = numbers(attr("shape"));
  strides_ = numbers(attr("strides"));
  pybind11::object memory = attr("data");
  data_ = reinterpret_cast<void*>(memory.attr("ptr").cast<std::uintptr_t>());
  device_ = memory.attr("device_id").cast<int>();
}

void DeviceArray::describe() {
  if (!m_ptr) return;
  if (device::is_own(*this)) return describe_own();
  pybind11::object interface = device::interface_of(*this);
  if (interface.is_none()) {  // DLPack alone: that library takes it in, without a copy
    pybind11::object device = attribute(*this, "__dlpack_device__"), taken;
    constexpr int kCuda = 2;
    if (!device.is_none() && device().cast<pybind11::tuple>()[0].cast<int>() == kCuda)
      taken = device::arrays().attr("from_dlpack")(*this), interface = device::interface_of(taken);
    pybind11::object::operator=(std::move(taken));
    if (!m_ptr) return;
  }
  dtype_ = known(pybind11::dtype::from_args(interface["typestr"]));
  shape_ = numbers(interface["shape"]);
  auto data = interface["data"].cast<pybind11::tuple>();
  data_ = reinterpret_cast<void*>(data[0].cast<std::uintptr_t>());
  read_only_ = data[1].cast<bool>();
  pybind11::object strides = interface.attr("get")("strides");
  if (!strides.is_none()) {
    strides_ = numbers(strides);
  } else {
    strides_.resize(shape_.size());
    index_t step = itemsize();
    for (std::size_t i = shape_.size(); i--; step *= shape_[i]) strides_[i] = step;
  }
  device::wait_for(interface.attr("get")("stream"));
}

index_t DeviceArray::size() const {
  index_t count = 1;
  for (index_t n : shape_) count *= n;
  return count;
}

int DeviceArray::flags() const {
  using api = pybind11::detail::npy_api;
  int flags = reinterpret_cast<std::uintptr_t>(data_) % std::uintptr_t(itemsize()) ? 0 : api::NPY_ARRAY_ALIGNED_;
  index_t step = itemsize();
  bool contiguous = true;
  for (std::size_t i = shape_.size(); i--; step *= shape_[i]) {
    if (strides_[i] % itemsize()) flags = 0;
    contiguous = contiguous && (shape_[i] <= 1 || strides_[i] == step);
  }
  return contiguous || !size() ? flags | api::NPY_ARRAY_C_CONTIGUOUS_ : flags;
}

}  // namespace seqkern
