// layer_norm and rms_norm, alone and with a residual: unpack, check, call.
#include "seqkern/layer_norm.h"

#include <pybind11/stl.h>

#include "output.h"

namespace seqkern {
namespace {

index_t product(Shape::const_iterator begin, Shape::const_iterator end) {
  index_t n = 1;
  for (; begin != end; ++begin) n *= *begin;
  return n;
}

// The dimensions of x: `shape` without and with its last ones, those that are normalised, made 1.
struct Dims {
  Shape whole, statistics;
  index_t rows, columns;
  Dims(const char* op, const char* name, const Array& x, const Shape& normalized) : whole(shape_of(x)) {
    std::size_t lead = whole.size() - normalized.size();
    if (normalized.empty() || normalized.size() > whole.size() ||
        !std::equal(normalized.begin(), normalized.end(), whole.begin() + std::ptrdiff_t(lead)))
      throw py::value_error(std::string(op) + ": " + name +
                            " must end in normalized_shape = " + shape_text(normalized) + ", got " + shape_text(whole));
    statistics.assign(whole.begin(), whole.begin() + std::ptrdiff_t(lead));
    rows = product(statistics.begin(), statistics.end());
    columns = product(normalized.begin(), normalized.end());
    statistics.resize(whole.size(), 1);
  }
};

// A weight or bias: the accumulator type, or bfloat16 beside anything but float64.
void check_parameter(const char* op, const char* name, const Array& a, const Shape& normalized, DType dtype) {
  if (!a) return;
  expect_shape(op, name, a, normalized, "normalized_shape = ");
  a.expect_accumulator(dtype, dtype != DType::f64);
}

// Returns (y, summed or None, mean or None, rstd).
py::tuple forward(const char* op, bool centred, py::handle x_, py::handle residual_, const Shape& normalized,
                  py::handle weight_, py::handle bias_, double eps, py::handle out, py::handle out_summed) {
  Array x(op, "x", x_), residual(op, "residual", residual_, true);
  Array weight(op, "weight", weight_, true), bias(op, "bias", bias_, true);
  Dims d(op, "x", x, normalized);
  if (residual) {
    expect_shape(op, "residual", residual, d.whole, "the shape of x, ");
    residual.expect_dtype(x.dtype());
  }
  check_parameter(op, "weight", weight, normalized, x.dtype());
  check_parameter(op, "bias", bias, normalized, x.dtype());
  py::array y = output(op, "out", out, x, {&x, &residual, &weight, &bias});
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  py::array rstd = empty(type, d.statistics);
  py::object mean = py::none(), summed = py::none();
  NormForward p{x.dtype(), d.rows, d.columns, eps, nullptr, nullptr, nullptr, nullptr, y.mutable_data()};
  if (residual) {
    Array first;
    if (!out.is_none()) first = Array(op, "out", out);
    py::array s = output(op, "out", out_summed, x, {&x, &residual, &weight, &bias, &first});
    p.summed = s.mutable_data();
    summed = s;
  }
  if (centred) {
    py::array m = empty(type, d.statistics);
    p.mean = m.mutable_data();
    mean = m;
  }
  p.rstd = rstd.mutable_data();
  p.x = x.data(), p.residual = residual.data();
  p.weight = weight.accumulator_data(), p.bias = bias.accumulator_data();
  call(centred ? cpu::layer_norm_forward : cpu::rms_norm_forward, p);
  return py::make_tuple(y, summed, mean, rstd);
}

// x: what was normalised, under the name it has in `saved`. Returns (dx, dweight or None, dbias or None).
py::tuple backward(const char* op, bool centred, py::handle dy_, py::handle dsummed_, const char* name, py::handle x_,
                   const Shape& normalized, py::handle weight_, py::handle mean_, py::handle rstd_, bool with_bias,
                   py::handle out) {
  Array x(op, name, x_), dy(op, "dy", dy_), dsummed(op, "dsummed", dsummed_, true), weight(op, "weight", weight_, true);
  Array mean(op, "mean", mean_, !centred), rstd(op, centred ? "rstd" : "rrms", rstd_);
  Dims d(op, name, x, normalized);
  for (auto& [what, a] : {std::pair<const char*, const Array*>{"dy", &dy}, {"dsummed", &dsummed}}) {
    if (!*a) continue;
    expect_shape(op, what, *a, d.whole, (std::string("the shape of ") + name + ", ").c_str());
    a->expect_dtype(x.dtype());
  }
  check_parameter(op, "weight", weight, normalized, x.dtype());
  if (centred) {
    expect_shape(op, "mean", mean, d.statistics);
    mean.expect_dtype(accumulator(x.dtype()));
  }
  expect_shape(op, centred ? "rstd" : "rrms", rstd, d.statistics);
  rstd.expect_dtype(accumulator(x.dtype()));
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  py::array dx = output(op, "out", out, x, {&x, &dy, &dsummed, &weight, &mean, &rstd});
  py::object dweight = py::none(), dbias = py::none();
  NormBackward p{x.dtype(), d.rows, d.columns};
  if (weight) {
    py::array w = empty(type, normalized);
    p.dweight = w.mutable_data();
    dweight = w;
  }
  if (with_bias) {
    py::array b = empty(type, normalized);
    p.dbias = b.mutable_data();
    dbias = b;
  }
  p.summed = x.data(), p.weight = weight.accumulator_data(), p.mean = mean.data(), p.rstd = rstd.data();
  p.dy = dy.data(), p.dsummed = dsummed.data(), p.dx = dx.mutable_data();
  call(centred ? cpu::layer_norm_backward : cpu::rms_norm_backward, p);
  return py::make_tuple(dx, dweight, dbias);
}

}  // namespace

void register_layer_norm(py::module_& m) {
  m.def("norm_forward", forward);
  m.def("norm_backward", backward);
}

}  // namespace seqkern
