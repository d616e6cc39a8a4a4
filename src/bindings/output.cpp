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

void expect_shape(const char* op, const char* name, const Array& a, const Shape& want, const char* meaning) {
  Shape got = shape_of(a);
  if (got != want)
    throw py::value_error(std::string(op) + ": " + name + " must be " + meaning +
                          shape_text(want.data(), int(want.size())) + ", got " +
                          shape_text(got.data(), int(got.size())));
}

py::array output(const char* op, const char* name, py::handle out, DType dtype, const py::dtype& numpy_dtype,
                 const Shape& shape, std::initializer_list<const Array*> inputs) {
  if (out.is_none()) return empty(numpy_dtype, shape);
  Array a(op, name, out);
  a.expect_dtype(dtype);
  expect_shape(op, name, a, shape);
  a.writable();
  Extent own = extent(a.array());
  for (const Array* input : inputs) {
    if (!*input) continue;
    Extent other = extent(input->array());
    if (own.begin < other.end && other.begin < own.end)
      throw py::value_error(std::string(op) + ": " + name + " must not overlap any other array, got one that does");
  }
  return a.array();
}

}  // namespace seqkern
