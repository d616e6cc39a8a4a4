// Results of operations: the caller's `out`, checked, or a new array.
#pragma once
#include "array.h"

namespace seqkern {

// ValueError if `own`, which is written, shares memory with one of `others`; absent ones do not count.
void expect_apart(const char* op, const char* name, const Array& own, std::initializer_list<const Array*> others);

// An array of this shape and type: `out` unless it is None, which must be contiguous, aligned, writable and apart
// from all `inputs`. Call it before the inputs' data() replaces them by copies.
py::array output(const char* op, const char* name, py::handle out, DType dtype, const py::dtype& numpy_dtype,
                 const Shape& shape, std::initializer_list<const Array*> inputs);

// The same as `like`.
inline py::array output(const char* op, const char* name, py::handle out, const Array& like,
                        std::initializer_list<const Array*> inputs) {
  return output(op, name, out, like.dtype(), like.numpy_dtype(), shape_of(like), inputs);
}

}  // namespace seqkern
