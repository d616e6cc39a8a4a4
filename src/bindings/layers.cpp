// embedding, softmax, cross-entropy: unpack, check, call.
#include "output.h"
#include "seqkern/embedding.h"
#include "seqkern/softmax.h"

namespace seqkern {
namespace {

[[noreturn]] void bad(const std::string& what) { throw py::value_error(what); }

py::array embedding_forward(py::handle ids_, py::handle weight_) {
  const char* op = "embedding";
  Array weight(op, "weight", weight_);
  Integers ids(op, "ids", ids_);
  weight.expect_rank(2, "[num_embeddings, embedding_dim]");
  Shape shape = shape_of(ids);
  shape.push_back(weight.size(1));
  ids.expect_between(0, weight.size(0) - 1);
  py::array y = empty(weight.numpy_dtype(), shape);
  call(cpu::embedding_forward, EmbeddingForward{ids.count(), weight.size(1) * index_t(weight.array().itemsize()),
                                                ids.data(), weight.data(), y.mutable_data()});
  return y;
}

py::array embedding_backward(py::handle dy_, py::handle ids_, py::handle weight_, index_t padding) {
  const char* op = "embedding";
  Array dy(op, "dy", dy_), weight(op, "weight", weight_);
  Integers ids(op, "ids", ids_);
  weight.expect_rank(2, "[num_embeddings, embedding_dim]");
  dy.expect_dtype(weight.dtype());
  index_t rows = weight.size(0), width = weight.size(1);
  Shape shape = shape_of(ids);
  shape.push_back(width);
  expect_shape(op, "dy", dy, shape);
  ids.expect_between(0, rows - 1);
  py::array dweight = empty(numpy_dtype(accumulator(dy.dtype())), {rows, width});
  call(cpu::embedding_backward,
       EmbeddingBackward{dy.dtype(), ids.count(), rows, width, padding, ids.data(), dy.data(), dweight.mutable_data()});
  return dweight;
}

// Rows and columns of an array read along its last axis.
struct Rows {
  index_t rows = 1, columns;
  Rows(const char* op, const char* name, const py::array& a) {
    if (a.ndim() == 0) bad(std::string(op) + ": " + name + " must have at least one dimension, got shape []");
    for (py::ssize_t i = 0; i + 1 < a.ndim(); ++i) rows *= a.shape(i);
    columns = a.shape(a.ndim() - 1);
  }
};

py::array softmax_forward(py::handle x_, bool log, py::handle out) {
  const char* op = log ? "log_softmax" : "softmax";
  Array x(op, "x", x_);
  Rows r(op, "x", x.array());
  py::array y = output(op, "out", out, x, {&x});
  call(cpu::softmax_forward, SoftmaxForward{x.dtype(), r.rows, r.columns, log, x.data(), y.mutable_data()});
  return y;
}

py::array softmax_backward(py::handle dy_, py::handle y_, bool log) {
  const char* op = log ? "log_softmax" : "softmax";
  Array y(op, "y", y_), dy(op, "dy", dy_);
  expect_shape(op, "dy", dy, shape_of(y), "the shape of y, ");
  dy.expect_dtype(y.dtype());
  Rows r(op, "y", y.array());
  py::array dx = empty(y.numpy_dtype(), shape_of(y));
  call(cpu::softmax_backward,
       SoftmaxBackward{y.dtype(), r.rows, r.columns, log, y.data(), dy.data(), dx.mutable_data()});
  return dx;
}

struct Classes {
  Array logits;
  Integers target;
  Rows r;
  Classes(py::handle logits_, py::handle target_, index_t ignore)
      : logits("cross_entropy", "logits", logits_),
        target("cross_entropy", "target", target_),
        r("cross_entropy", "logits", logits.array()) {
    Shape want = shape_of(logits);
    want.pop_back();
    expect_shape("cross_entropy", "target", target, want, "the shape of logits without its last axis, ");
    if (r.columns < 1) bad("cross_entropy: logits must have at least one class, got 0");
    target.expect_between(0, r.columns - 1, ignore);
  }
};

// (loss of every row, lse)
py::tuple cross_entropy_forward(py::handle logits, py::handle target, index_t ignore, double smoothing) {
  Classes c(logits, target, ignore);
  py::dtype type = numpy_dtype(accumulator(c.logits.dtype()));
  py::array loss = empty(type, shape_of(c.target)), lse = empty(type, shape_of(c.target));
  call(cpu::cross_entropy_forward,
       CrossEntropyForward{c.logits.dtype(), c.r.rows, c.r.columns, ignore, smoothing, c.logits.data(), c.target.data(),
                           loss.mutable_data(), lse.mutable_data()});
  return py::make_tuple(loss, lse);
}

py::array cross_entropy_backward(py::handle scale_, py::handle logits, py::handle target, py::handle lse_,
                                 index_t ignore, double smoothing) {
  Classes c(logits, target, ignore);
  Array lse("cross_entropy", "lse", lse_), scale("cross_entropy", "dloss", scale_);
  for (auto a : {&lse, &scale}) {
    expect_shape("cross_entropy", a == &lse ? "lse" : "dloss", *a, shape_of(c.target), "the shape of target, ");
    a->expect_dtype(accumulator(c.logits.dtype()));
  }
  py::array dlogits = empty(c.logits.numpy_dtype(), shape_of(c.logits));
  call(cpu::cross_entropy_backward,
       CrossEntropyBackward{c.logits.dtype(), c.r.rows, c.r.columns, ignore, smoothing, c.logits.data(), lse.data(),
                            scale.data(), c.target.data(), dlogits.mutable_data()});
  return dlogits;
}

}  // namespace

void register_layers(py::module_& m) {
  m.def("embedding_forward", embedding_forward);
  m.def("embedding_backward", embedding_backward);
  m.def("softmax_forward", softmax_forward);
  m.def("softmax_backward", softmax_backward);
  m.def("cross_entropy_forward", cross_entropy_forward);
  m.def("cross_entropy_backward", cross_entropy_backward);
}

}  // namespace seqkern
