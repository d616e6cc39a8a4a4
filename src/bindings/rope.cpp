// rope: unpack, check, call. The tables of cosines and sines come from ops/rope.py.
#include "seqkern/rope.h"

#include "output.h"

namespace seqkern {
namespace {

// x [..., dim]; cos and sin [table_rows, width]; table_row [rows] or None.
py::array rope(const char* name, py::handle x_, py::handle cos_, py::handle sin_, py::handle table_row_,
               index_t rotary_dim, bool interleaved, bool inverse, py::handle out) {
  const char* op = "rope";
  Array x(op, name, x_), cos(op, "cos", cos_), sin(op, "sin", sin_);
  Integers table_row(op, "positions", table_row_, true);
  Shape shape = shape_of(x);
  index_t dim = shape.empty() ? 0 : shape.back();
  if (shape.size() < 2 || rotary_dim < 0 || rotary_dim % 2 || rotary_dim > dim)
    throw py::value_error(std::string(op) + ": rotary_dim must be even and at most the last dimension of " + name +
                          ", which must be [..., L, D]; got rotary_dim = " + std::to_string(rotary_dim) +
                          " and shape " + shape_text(shape.data(), int(shape.size())));
  index_t rows = 1, width = interleaved ? rotary_dim : rotary_dim / 2;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  cos.expect_rank(2, "[table_rows, width]");
  for (const Array* a : {&cos, &sin}) {
    a->expect({{"table_rows", cos.size(0)}, {"width", width}});
    a->expect_dtype(accumulator(x.dtype()));
  }
  if (cos.size(0) < 1 && rows > 0) throw py::value_error(std::string(op) + ": cos must have at least one row, got 0");
  table_row.expect({{"rows", rows}});
  table_row.expect_between(0, cos.size(0) - 1);
  py::array y = output(op, "out", out, x, {&x, &cos, &sin});
  Rope p{x.dtype(), rows, dim, rotary_dim, cos.size(0), interleaved, inverse};
  p.x = x.data(), p.cos = cos.data(), p.sin = sin.data(), p.table_row = table_row.data(), p.y = y.mutable_data();
  call(cpu::rope, p);
  return y;
}

}  // namespace

void register_rope(py::module_& m) { m.def("rope", rope); }

}  // namespace seqkern
