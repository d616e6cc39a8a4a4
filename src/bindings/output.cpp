#include "output.h"

namespace seqkern {
namespace {

struct Extent {
  const char *begin, *end;
};

// The bytes from the first to the last element, whatever the strides.
Extent extent(const py::array& a) {
  auto low = static_cast<const char*>(a.data()), high = low + a.itemsize();
  for (py::ssize_t i = 0; i < a.ndim(); ++i) {
    py::ssize_t span = (a.shape(i) - 1) * a.strides(i);
    (span < 0 ? low : high) += span;
  }
  return a.size() ? Extent{low, high} : Extent{low, low};
}

}  // namespace

void expect_apart(const char* op, const char* name, const Array& own, std::initializer_list<const Array*> others) {
  Extent mine = extent(own.array());
  for (const Array* other : others) {
    if (!*other) continue;
    Extent theirs = extent(other->array());
    if (mine.begin < theirs.end && theirs.begin < mine.end)
      throw py::value_error(std::string(op) + ": " + name + " must not overlap any other array, got one that does");
  }
}

py::array output(const char* op, const char* name, py::handle out, DType dtype, const py::dtype& numpy_dtype,
                 const Shape& shape, std::initializer_list<const Array*> inputs) {
  if (out.is_none()) return empty(numpy_dtype, shape);
  Array a(op, name, out);
  a.expect_dtype(dtype);
  expect_shape(op, name, a, shape);
  a.writable();
  expect_apart(op, name, a, inputs);
  return a.array();
}

}  // namespace seqkern
