// conv1d, conv2d and max_pool2d: unpack, check, call. One spatial dimension is a plane of height 1.
#include "seqkern/conv.h"
#include <pybind11/stl.h>

#include "array.h"
#include "seqkern/pool.h"

namespace seqkern {
namespace {

using Sizes = std::vector<index_t>;  // one for each spatial dimension; Python has checked their signs

[[noreturn]] void bad(const std::string& what) { throw py::value_error(what); }

Size2 size2(const Sizes& s) { return s.size() == 1 ? Size2{1, s[0]} : Size2{s[0], s[1]}; }

Size2 spatial(const Array& a) { return a.rank() == 3 ? Size2{1, a.size(2)} : Size2{a.size(2), a.size(3)}; }

std::string text(std::initializer_list<index_t> sizes) { return shape_text(sizes.begin(), int(sizes.size())); }

// Windows of `kernel` taps that fit into `in` between the zeros.
index_t out_size(const char* op, index_t in, index_t kernel, index_t stride, index_t zeros, index_t dilation) {
  index_t room = in + zeros - dilation * (kernel - 1) - 1;
  if (room < 0)
    bad(std::string(op) + ": x, with padding, must be at least as large as the kernel, with dilation, which is " +
        std::to_string(dilation * (kernel - 1) + 1) + ", got " + std::to_string(in + zeros));
  return room / stride + 1;
}

struct Options {
  Sizes stride, before, after, dilation;
  index_t groups;
};

ConvShape check_conv(const char* op, int dims, const Array& x, const Array& weight, const Options& o) {
  x.expect_rank(dims + 2, dims == 1 ? "[N, C, L]" : "[N, C, H, W]");
  weight.expect_rank(dims + 2, dims == 1 ? "[O, C / groups, k]" : "[O, C / groups, kh, kw]");
  if (!(x.dtype() == DType::f32 && weight.dtype() == DType::bf16)) weight.expect_dtype(x.dtype());
  if (weight.size(1) * o.groups != x.size(1))
    bad(std::string(op) + ": x must have C = groups * weight's second dimension = " + std::to_string(o.groups) + " * " +
        std::to_string(weight.size(1)) + " channels, got " + std::to_string(x.size(1)));
  if (weight.size(0) % o.groups)
    bad(std::string(op) + ": weight's first dimension must be a multiple of groups = " + std::to_string(o.groups) +
        ", got " + std::to_string(weight.size(0)));
  ConvShape p{x.dtype(), weight.dtype(), x.size(0), x.size(1), weight.size(0), o.groups, spatial(x), {}, {}, {}, {},
              {}};
  p.kernel = spatial(weight);
  p.stride = size2(o.stride);
  p.padding = dims == 1 ? Size2{0, o.before[0]} : size2(o.before);
  p.dilation = size2(o.dilation);
  Size2 after = dims == 1 ? Size2{0, o.after[0]} : size2(o.after);
  if (p.kernel.height < 1 || p.kernel.width < 1)
    bad(std::string(op) + ": weight must have a kernel of at least 1, got " + text({p.kernel.height, p.kernel.width}));
  p.out.height =
      out_size(op, p.in.height, p.kernel.height, p.stride.height, p.padding.height + after.height, p.dilation.height);
  p.out.width =
      out_size(op, p.in.width, p.kernel.width, p.stride.width, p.padding.width + after.width, p.dilation.width);
  return p;
}

Sizes out_shape(const ConvShape& p, int dims) {
  if (dims == 1) return {p.batch, p.out_channels, p.out.width};
  return {p.batch, p.out_channels, p.out.height, p.out.width};
}

Sizes shape_of(const py::array& a) { return {a.shape(), a.shape() + a.ndim()}; }

void expect_shape(const char* op, const char* name, const Array& a, const Sizes& want) {
  auto got = shape_of(a.array());
  if (got != want)
    bad(std::string(op) + ": " + name + " must be " + shape_text(want.data(), int(want.size())) + ", got " +
        shape_text(got.data(), int(got.size())));
}

py::array conv_forward(int dims, py::handle x_, py::handle weight_, py::handle bias_, const Sizes& stride,
                       const Sizes& before, const Sizes& after, const Sizes& dilation, index_t groups) {
  const char* op = dims == 1 ? "conv1d" : "conv2d";
  Array x(op, "x", x_), weight(op, "weight", weight_), bias(op, "bias", bias_, true);
  ConvForward p{check_conv(op, dims, x, weight, {stride, before, after, dilation, groups})};
  bias.expect({{"out_channels", weight.size(0)}});
  bias.expect_accumulator(x.dtype(), weight.dtype() == DType::bf16);
  py::array y = empty(x.numpy_dtype(), out_shape(p, dims));
  p.x = x.data();
  p.weight = weight.data();
  p.bias = bias.accumulator_data();
  p.y = y.mutable_data();
  call(cpu::conv_forward, p);
  return y;
}

py::tuple conv_backward(int dims, py::handle dy_, py::handle x_, py::handle weight_, bool with_bias,
                        const Sizes& stride, const Sizes& before, const Sizes& after, const Sizes& dilation,
                        index_t groups) {
  const char* op = dims == 1 ? "conv1d" : "conv2d";
  Array x(op, "x", x_), weight(op, "weight", weight_), dy(op, "dy", dy_, true);
  ConvBackward p{check_conv(op, dims, x, weight, {stride, before, after, dilation, groups})};
  py::dtype type = numpy_dtype(accumulator(x.dtype()));
  if (dy) {
    expect_shape(op, "dy", dy, out_shape(p, dims));
    dy.expect_dtype(x.dtype());
  }
  py::array dx = empty(x.numpy_dtype(), shape_of(x.array())), dweight = empty(type, shape_of(weight.array()));
  py::object dbias = with_bias ? py::object(empty(type, {weight.size(0)})) : py::none();
  if (!dy) {
    for (const auto& a : {py::object(dx), py::object(dweight), dbias})
      if (!a.is_none()) a.attr("fill")(0);
    return py::make_tuple(dx, dweight, dbias);
  }
  p.x = x.data();
  p.weight = weight.data();
  p.dy = dy.data();
  p.dx = dx.mutable_data();
  p.dweight = dweight.mutable_data();
  if (with_bias) p.dbias = py::reinterpret_borrow<py::array>(dbias).mutable_data();
  call(cpu::conv_backward, p);
  return py::make_tuple(dx, dweight, dbias);
}

constexpr const char* kPool = "max_pool2d";

// As torch: in ceil mode a window may hang over the end, if it starts before the right zeros.
index_t pooled_size(index_t in, index_t kernel, index_t stride, index_t padding, index_t dilation, bool ceil_mode) {
  index_t out = out_size(kPool, in, kernel, stride, 2 * padding, dilation);
  index_t room = in + 2 * padding - dilation * (kernel - 1) - 1;
  if (ceil_mode && room % stride && out * stride < in + padding) ++out;
  return out;
}

py::tuple max_pool2d_forward(py::handle x_, const Sizes& kernel, const Sizes& stride, const Sizes& padding,
                             const Sizes& dilation, bool ceil_mode, bool with_indices) {
  Array x(kPool, "x", x_);
  x.expect_rank(4, "[N, C, H, W]");
  MaxPoolForward p;
  p.dtype = x.dtype();
  p.planes = x.size(0) * x.size(1);
  p.in = spatial(x);
  p.kernel = size2(kernel);
  p.stride = size2(stride);
  p.padding = size2(padding);
  p.dilation = size2(dilation);
  auto size = [&](int i) {
    std::size_t d = std::size_t(i);
    return pooled_size(x.size(i + 2), kernel[d], stride[d], padding[d], dilation[d], ceil_mode);
  };
  p.out = {size(0), size(1)};
  Sizes shape{x.size(0), x.size(1), p.out.height, p.out.width};
  py::array y = empty(x.numpy_dtype(), shape);
  py::object indices = with_indices ? py::object(empty(py::dtype::of<index_t>(), shape)) : py::none();
  if (with_indices) p.indices = static_cast<index_t*>(py::reinterpret_borrow<py::array>(indices).mutable_data());
  p.x = x.data();
  p.y = y.mutable_data();
  call(cpu::max_pool_forward, p);
  return py::make_tuple(y, indices);
}

py::array max_pool2d_backward(py::handle dy_, py::handle indices_, const Sizes& shape) {
  Array dy(kPool, "dy", dy_);
  Integers indices(kPool, "indices", indices_);
  if (shape.size() != 4) bad("max_pool2d: saved shape must have four dimensions");
  dy.expect_rank(4, "[N, C, H', W']");
  indices.expect({{"N", shape[0]}, {"C", shape[1]}, {"H'", dy.size(2)}, {"W'", dy.size(3)}});
  dy.expect({{"N", shape[0]}, {"C", shape[1]}, {"H'", dy.size(2)}, {"W'", dy.size(3)}});
  MaxPoolBackward p{dy.dtype(), shape[0] * shape[1], shape[2] * shape[3], dy.size(2) * dy.size(3)};
  indices.expect_between(0, p.in_size - 1);
  py::array dx = empty(dy.numpy_dtype(), shape);
  p.indices = indices.data();
  p.dy = dy.data();
  p.dx = dx.mutable_data();
  call(cpu::max_pool_backward, p);
  return dx;
}

}  // namespace

void register_conv(py::module_& m) {
  m.def("conv_forward", conv_forward);
  m.def("conv_backward", conv_backward);
  m.def("max_pool2d_forward", max_pool2d_forward);
  m.def("max_pool2d_backward", max_pool2d_backward);
}

}  // namespace seqkern
