// Read-only copies of arrays in the memory of a FrozenWeight, which lives in the capsule that is the copy's base. NumPy
// lets nobody make such an array, or a view of it, writable again.
#include "cpu/frozen.h"

#include <memory>

#include "array.h"

namespace seqkern {
namespace {

constexpr const char* kCapsule = "seqkern.FrozenWeight";

void destroy(PyObject* capsule) { delete static_cast<FrozenWeight*>(PyCapsule_GetPointer(capsule, kCapsule)); }

py::array freeze(py::handle object) {
  py::array from = as_array("freeze", "array", object);
  if (frozen(from)) return from;
  if (from.dtype().attr("hasobject").cast<bool>())
    throw py::type_error("freeze: array must hold numbers, got " + std::string(py::str(from.dtype())));
  auto weight = std::make_unique<FrozenWeight>(std::size_t(from.nbytes()));
  py::capsule owner(weight.get(), kCapsule, destroy);
  py::array to(from.dtype(), shape_of(from), {}, weight.release()->data(), owner);
  to[py::ellipsis()] = from;
  py::detail::array_proxy(to.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return to;
}

}  // namespace

FrozenWeight* frozen(const py::array& a) {
  if (!a) return nullptr;
  PyObject* base = py::detail::array_proxy(a.ptr())->base;
  if (!base || !PyCapsule_IsValid(base, kCapsule)) return nullptr;
  auto* weight = static_cast<FrozenWeight*>(PyCapsule_GetPointer(base, kCapsule));
  bool whole = a.data() == weight->data() && std::size_t(a.nbytes()) == weight->bytes() && !a.writeable() &&
               a.flags() & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
  return whole ? weight : nullptr;
}

void register_frozen(py::module_& m) {
  m.def("freeze", freeze);
  m.def("kept_bytes", [](const py::array& a) { return frozen(a) ? frozen(a)->kept_bytes() : 0; });
}

}  // namespace seqkern
