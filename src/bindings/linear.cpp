// linear, with its fused activation and residual, and linear_int8: unpack, check, call.
#include "seqkern/linear.h"

#include "output.h"

namespace seqkern {
namespace {

index_t product(const Shape& shape) {
  index_t n = 1;
  for (auto d : shape) n *= d;
  return n;
}

Fused as_fused(const char* op, py::handle activation) {
  if (activation.is_none()) return {};
  if (py::isinstance<py::str>(activation)) {
    auto name = activation.cast<std::string>();
    if (name == "relu") return {true, Activation::relu};
    if (name == "silu") return {true, Activation::silu};
    if (name == "gelu") return {true, Activation::gelu};
    if (name == "gelu_tanh") return {true, Activation::gelu_tanh};
  }
  throw py::value_error(std::string(op) + ": activation must be None, 'gelu', 'gelu_tanh', 'relu' or 'silu', got " +
                        py::repr(activation).cast<std::string>());
}

// The shape of y for x [..., in] and a weight [out, in].
Shape result_shape(const char* op, const Array& x, index_t out_features, index_t in_features) {
  Shape shape = shape_of(x);
  if (shape.empty() || shape.back() != in_features)
    throw py::value_error(std::string(op) + ": x must be [..., in_features] with in_features = " +
                          std::to_string(in_features) + ", got " + shape_text(shape.data(), int(shape.size())));
  shape.back() = out_features;
  return shape;
}

Shape check(const char* op, const Array& x, const Array& weight) {
  weight.expect_rank(2, "[out_features, in_features]");
  Shape shape = result_shape(op, x, weight.size(0), weight.size(1));
  if (!(x.dtype() == DType::f32 && weight.dtype() == DType::bf16)) weight.expect_dtype(x.dtype());
  return shape;
}

void check_like_y(const char* op, const char* name, const Array& a, const Array& x, const Shape& shape) {
  if (!a) return;
  expect_shape(op, name, a, shape, "the shape of y, ");
  a.expect_dtype(x.dtype());
}

index_t rows_of(const Array& x) {
  Shape lead = shape_of(x);
  lead.pop_back();
  return product(lead);
}

// (y, z), z being None unless it is wanted for backward.
py::tuple linear_forward(py::handle x_, py::handle weight_, py::handle bias_, py::handle activation,
                         py::handle residual_, py::handle out, bool keep_z, std::string_view precision) {
  const char* op = "linear";
  Array x(op, "x", x_), weight(op, "weight", weight_), bias(op, "bias", bias_, true),
      residual(op, "residual", residual_, true);
  Shape shape = check(op, x, weight);
  bias.expect({{"out_features", weight.size(0)}});
  bias.expect_accumulator(x.dtype(), weight.dtype() == DType::bf16);
  check_like_y(op, "residual", residual, x, shape);
  Fused fused = as_fused(op, activation);
  py::array y = output(op, "out", out, x.dtype(), x.numpy_dtype(), shape, {&x, &weight, &bias, &residual});
  py::object z = py::none();
  LinearForward p{x.dtype(),     weight.dtype(),          rows_of(x),       weight.size(1), weight.size(0),  x.data(),
                  weight.data(), bias.accumulator_data(), y.mutable_data(), fused,          residual.data(), nullptr};
  p.precision = as_precision(op, precision);
  if (keep_z && fused.activates) {
    py::array kept = empty(x.numpy_dtype(), shape);
    p.z = kept.mutable_data();
    z = kept;
  }
  call(cpu::linear_forward, p);
  return py::make_tuple(y, z);
}

py::tuple linear_backward(py::handle dy_, py::handle x_, py::handle weight_, bool with_bias, py::handle activation,
                          py::handle z_, std::string_view precision) {
  const char* op = "linear";
  Fused fused = as_fused(op, activation);
  Array x(op, "x", x_), weight(op, "weight", weight_), dy(op, "dy", dy_), z(op, "z", z_, !fused.activates);
  Shape shape = check(op, x, weight);
  expect_shape(op, "dy", dy, shape);
  dy.expect_dtype(x.dtype());
  check_like_y(op, "z", z, x, shape);
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  py::array dx = empty(x.numpy_dtype(), shape_of(x)), dweight = empty(type, shape_of(weight));
  py::object dbias = py::none();
  LinearBackward p{x.dtype(),         weight.dtype(),
                   rows_of(x),        weight.size(1),
                   weight.size(0),    x.data(),
                   weight.data(),     dy.data(),
                   dx.mutable_data(), dweight.mutable_data(),
                   nullptr,           fused,
                   z.data(),          as_precision(op, precision)};
  if (with_bias) {
    py::array b = empty(type, {weight.size(0)});
    p.dbias = b.mutable_data();
    dbias = b;
  }
  call(cpu::linear_backward, p);
  return py::make_tuple(dx, dweight, dbias);
}

// The int8 weight [out_features, in_features], contiguous.
py::array int8_array(const char* op, const char* name, py::handle object) {
  if (!py::isinstance<py::array>(object))
    throw py::type_error(std::string(op) + ": " + name + " must be a NumPy array, got " +
                         py::str(py::type::of(object).attr("__name__")).cast<std::string>());
  auto a = py::reinterpret_borrow<py::array>(object);
  if (a.dtype().kind() != 'i' || a.itemsize() != 1)
    throw py::type_error(std::string(op) + ": " + name + " must be int8, got " +
                         py::str(a.dtype()).cast<std::string>());
  if (a.ndim() != 2) {
    Shape got(a.shape(), a.shape() + a.ndim());
    throw py::value_error(std::string(op) + ": " + name + " must be [out_features, in_features], got shape " +
                          shape_text(got.data(), int(got.size())));
  }
  return a;
}

py::array linear_int8(py::handle x_, py::handle q_, py::handle scale_, py::handle bias_, py::handle activation,
                      py::handle residual_) {
  const char* op = "linear_int8";
  Array x(op, "x", x_), scale(op, "scale", scale_), bias(op, "bias", bias_, true),
      residual(op, "residual", residual_, true);
  py::array q = int8_array(op, "q", q_);
  Shape shape = result_shape(op, x, q.shape(0), q.shape(1));
  if (x.dtype() == DType::f64) throw py::type_error("linear_int8: x must be float32 or bfloat16, got float64");
  scale.expect({{"out_features", q.shape(0)}});
  scale.expect_dtype(DType::f32);
  bias.expect({{"out_features", q.shape(0)}});
  bias.expect_accumulator(DType::f32, true);
  check_like_y(op, "residual", residual, x, shape);
  Fused fused = as_fused(op, activation);
  if (!(q.flags() & py::array::c_style)) {
    count_allocation();
    q = q.attr("copy")("C").cast<py::array>();
  }
  py::array y = empty(x.numpy_dtype(), shape);
  call(cpu::linear_int8,
       LinearInt8{x.dtype(), rows_of(x), q.shape(1), q.shape(0), x.data(), static_cast<const std::int8_t*>(q.data()),
                  static_cast<const float*>(scale.data()), static_cast<const float*>(bias.accumulator_data()),
                  y.mutable_data(), fused, residual.data()});
  return y;
}

}  // namespace

void register_linear(py::module_& m) {
  m.def("linear_forward", linear_forward);
  m.def("linear_backward", linear_backward);
  m.def("linear_int8", linear_int8);
}

}  // namespace seqkern
