// relu, sigmoid, tanh, silu, gelu: unpack, check, call.
#include "seqkern/activation.h"

#include "output.h"

namespace seqkern {
namespace {

struct Named {
  const char *key, *op;
  Activation function;
};
constexpr Named kFunctions[] = {
    {"relu", "relu", Activation::relu}, {"sigmoid", "sigmoid", Activation::sigmoid},
    {"tanh", "tanh", Activation::tanh}, {"silu", "silu", Activation::silu},
    {"gelu", "gelu", Activation::gelu}, {"gelu_tanh", "gelu", Activation::gelu_tanh},
};

const Named& find(const std::string& key) {
  for (auto& f : kFunctions)
    if (key == f.key) return f;
  throw py::value_error("activation: there is no function '" + key + "'");
}

py::array forward(const std::string& key, py::handle x_, py::handle out) {
  const Named& f = find(key);
  Array x(f.op, "x", x_);
  py::array y = output(f.op, "out", out, x, {&x});
  call(cpu::activation_forward, ActivationForward{x.dtype(), f.function, x.array().size(), x.data(), y.mutable_data()});
  return y;
}

// saved: y for sigmoid and tanh, else x.
py::array backward(const std::string& key, py::handle dy_, py::handle saved_, py::handle out) {
  const Named& f = find(key);
  bool from_y = f.function == Activation::sigmoid || f.function == Activation::tanh;
  Array saved(f.op, from_y ? "y" : "x", saved_), dy(f.op, "dy", dy_);
  expect_shape(f.op, "dy", dy, shape_of(saved), from_y ? "the shape of y, " : "the shape of x, ");
  dy.expect_dtype(saved.dtype());
  py::array dx = output(f.op, "out", out, saved, {&saved, &dy});
  call(cpu::activation_backward,
       ActivationBackward{saved.dtype(), f.function, saved.array().size(), saved.data(), dy.data(), dx.mutable_data()});
  return dx;
}

}  // namespace

void register_activation(py::module_& m) {
  m.def("activation_forward", forward);
  m.def("activation_backward", backward);
}

}  // namespace seqkern
