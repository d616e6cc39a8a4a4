// Dropout and the optimiser updates: unpack, check, call.
#include "seqkern/elementwise.h"

#include "output.h"

namespace seqkern {
namespace {

py::array dropout(py::handle x_, double p, std::uint64_t seed, std::uint64_t offset, const char* name) {
  Array x("dropout", name, x_);
  py::array y = empty(x.numpy_dtype(), shape_of(x));
  call(cpu::dropout, Dropout{x.dtype(), x.array().size(), p, seed, offset, x.data(), y.mutable_data()});
  return y;
}

// The mask of x on its gradient.
py::array dropout_backward(py::handle dy_, py::handle x_, double p, std::uint64_t seed, std::uint64_t offset) {
  Array x("dropout", "x", x_), dy("dropout", "dy", dy_);
  expect_shape("dropout", "dy", dy, shape_of(x), "the shape of x, ");
  dy.expect_dtype(x.dtype());
  return dropout(dy_, p, seed, offset, "dy");
}

// A parameter updated in place, its gradient, and the optimiser's state of the same shape.
struct Update {
  Array param, grad;
  const char* op;
  Update(const char* op_, py::handle param_, py::handle grad_)
      : param(op_, "param", param_), grad(op_, "grad", grad_), op(op_) {
    grad.expect_accumulator(param.dtype(), param.dtype() == DType::bf16);
    same_shape("grad", grad);
    expect_apart(op, "param", param, {&grad});
  }
  void same_shape(const char* name, const Array& a) const {
    expect_shape(op, name, a, shape_of(param), "the shape of param, ");
  }
  void* state(const char* name, py::handle object, Array& keep, bool optional = false) const {
    keep = Array(op, name, object, optional);
    if (!keep) return nullptr;
    keep.expect_dtype(accumulator(param.dtype()));
    same_shape(name, keep);
    expect_apart(op, name, keep, {&param, &grad});
    return keep.writable();
  }
  index_t count() const { return param.array().size(); }
};

void sgd(py::handle param, py::handle grad, py::handle buffer, double lr, double momentum, double dampening,
         double weight_decay, bool nesterov) {
  Update u("sgd_update", param, grad);
  Array b;
  void* state = u.state("momentum_buffer", buffer, b, true);
  call(cpu::sgd_update, SgdUpdate{u.param.dtype(), u.count(), lr, momentum, dampening, weight_decay, nesterov,
                                  u.param.writable(), u.grad.accumulator_data(), state});
}

void adagrad(py::handle param, py::handle grad, py::handle sum, double lr, double eps, double weight_decay) {
  Update u("adagrad_update", param, grad);
  Array s;
  void* state = u.state("sum", sum, s);
  call(cpu::adagrad_update, AdagradUpdate{u.param.dtype(), u.count(), lr, eps, weight_decay, u.param.writable(),
                                          u.grad.accumulator_data(), state});
}

void adamw(py::handle param, py::handle grad, py::handle exp_avg, py::handle exp_avg_sq, index_t step, double lr,
           double beta1, double beta2, double eps, double weight_decay) {
  Update u("adamw_update", param, grad);
  Array m, v;
  void *first = u.state("exp_avg", exp_avg, m), *second = u.state("exp_avg_sq", exp_avg_sq, v);
  expect_apart(u.op, "exp_avg", m, {&v});
  call(cpu::adamw_update, AdamwUpdate{u.param.dtype(), u.count(), step, lr, beta1, beta2, eps, weight_decay,
                                      u.param.writable(), u.grad.accumulator_data(), first, second});
}

}  // namespace

void register_elementwise(py::module_& m) {
  m.def("dropout", [](py::handle x, double p, std::uint64_t seed, std::uint64_t offset) {
    return dropout(x, p, seed, offset, "x");
  });
  m.def("dropout_backward", dropout_backward);
  m.def("sgd_update", sgd);
  m.def("adagrad_update", adagrad);
  m.def("adamw_update", adamw);
}

}  // namespace seqkern
