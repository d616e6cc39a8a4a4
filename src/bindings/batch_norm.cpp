// batch_norm: unpack, check, call.
#include "seqkern/batch_norm.h"

#include "output.h"

namespace seqkern {
namespace {

constexpr const char* kOp = "batch_norm";

// x [N, C, ...] as [batch, channels, inner].
struct Dims {
  index_t batch, channels, inner = 1;
  explicit Dims(const Array& x) {
    if (x.rank() < 2) {
      Shape got = shape_of(x);
      throw py::value_error(std::string(kOp) + ": x must be [N, C, ...], got shape " +
                            shape_text(got.data(), int(got.size())));
    }
    batch = x.size(0), channels = x.size(1);
    for (int i = 2; i < x.rank(); ++i) inner *= x.size(i);
  }
};

void expect_per_channel(const Array& a, const Dims& d, DType dtype, bool or_bf16) {
  a.expect({{"C", d.channels}});
  a.expect_accumulator(dtype, or_bf16 && dtype != DType::f64);
}

// Returns (y, mean, rstd).
py::tuple forward(py::handle x_, py::handle running_mean_, py::handle running_var_, py::handle weight_,
                  py::handle bias_, bool training, double momentum, double eps, py::handle out) {
  Array x(kOp, "x", x_), running_mean(kOp, "running_mean", running_mean_, true);
  Array running_var(kOp, "running_var", running_var_, true);
  Array weight(kOp, "weight", weight_, true), bias(kOp, "bias", bias_, true);
  Dims d(x);
  for (const Array* a : {&running_mean, &running_var}) expect_per_channel(*a, d, x.dtype(), !training);
  for (const Array* a : {&weight, &bias}) expect_per_channel(*a, d, x.dtype(), true);
  if (bool(running_mean) != bool(running_var))
    throw py::value_error(std::string(kOp) + ": running_mean and running_var must be given together");
  if (!training && !running_mean)
    throw py::value_error(std::string(kOp) + ": running_mean and running_var must be given when training is False");
  if (training && d.batch * d.inner == 1)
    throw py::value_error(std::string(kOp) + ": x must have more than one value per channel in training, got one");
  py::array y = output(kOp, "out", out, x, {&x, &running_mean, &running_var, &weight, &bias});
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  py::array mean = empty(type, {d.channels}), rstd = empty(type, {d.channels});
  BatchNormForward p{x.dtype(), d.batch, d.channels, d.inner, training, momentum, eps};
  p.x = x.data(), p.weight = weight.accumulator_data(), p.bias = bias.accumulator_data();
  p.y = y.mutable_data(), p.mean = mean.mutable_data(), p.rstd = rstd.mutable_data();
  bool update = training && d.batch * d.inner > 0;
  // Only read outside training, where any layout will do.
  p.running_mean = update ? running_mean.writable() : const_cast<void*>(running_mean.accumulator_data());
  p.running_var = update ? running_var.writable() : const_cast<void*>(running_var.accumulator_data());
  if (d.batch * d.inner == 0 && training) p.running_mean = p.running_var = nullptr;
  call(cpu::batch_norm_forward, p);
  return py::make_tuple(y, mean, rstd);
}

// Returns (dx, dweight or None, dbias or None).
py::tuple backward(py::handle dy_, py::handle x_, py::handle weight_, py::handle mean_, py::handle rstd_,
                   bool with_bias, bool training, py::handle out) {
  Array x(kOp, "x", x_), dy(kOp, "dy", dy_), weight(kOp, "weight", weight_, true);
  Array mean(kOp, "mean", mean_), rstd(kOp, "rstd", rstd_);
  Dims d(x);
  expect_shape(kOp, "dy", dy, shape_of(x), "the shape of x, ");
  dy.expect_dtype(x.dtype());
  expect_per_channel(weight, d, x.dtype(), true);
  for (const Array* a : {&mean, &rstd}) expect_per_channel(*a, d, x.dtype(), false);
  py::array dx = output(kOp, "out", out, x, {&x, &dy, &weight, &mean, &rstd});
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  py::object dweight = py::none(), dbias = py::none();
  BatchNormBackward p{x.dtype(), d.batch, d.channels, d.inner, training};
  if (weight) {
    py::array w = empty(type, {d.channels});
    p.dweight = w.mutable_data();
    dweight = w;
  }
  if (with_bias) {
    py::array b = empty(type, {d.channels});
    p.dbias = b.mutable_data();
    dbias = b;
  }
  p.x = x.data(), p.weight = weight.accumulator_data(), p.mean = mean.data(), p.rstd = rstd.data(), p.dy = dy.data();
  p.dx = dx.mutable_data();
  call(cpu::batch_norm_backward, p);
  return py::make_tuple(dx, dweight, dbias);
}

}  // namespace

void register_batch_norm(py::module_& m) {
  m.def("batch_norm_forward", forward);
  m.def("batch_norm_backward", backward);
}

}  // namespace seqkern
