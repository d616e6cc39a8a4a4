// rnn, lstm, gru: unpack, check, call. Layers take x [T, N, I]; cells take x [N, I] and are a layer of one step.
#include "seqkern/recurrent.h"

#include "array.h"

namespace seqkern {
namespace {

enum class Kind { rnn, lstm, gru };

// What forward and backward check alike. Order of the constructor is the order of the errors.
struct Layer {
  const char* op;
  Kind kind;
  bool cell;
  Array x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0, weight_hr, peephole;
  Integers lengths;
  index_t T, N, I, H, S;
  int gates;

  Layer(const char* op_, Kind kind_, bool cell_, py::handle x_, py::handle w_ih, py::handle w_hh, py::handle b_ih,
        py::handle b_hh, py::handle h, py::handle c, py::handle w_hr, py::handle p, py::handle l)
      : op(op_),
        kind(kind_),
        cell(cell_),
        x(op, "x", x_),
        weight_ih(op, "weight_ih", w_ih),
        weight_hh(op, "weight_hh", w_hh),
        bias_ih(op, "bias_ih", b_ih, true),
        bias_hh(op, "bias_hh", b_hh, true),
        h0(op, cell ? "h" : "h0", h, !cell),
        c0(op, cell ? "c" : "c0", c, !(cell && kind == Kind::lstm)),
        weight_hr(op, "weight_hr", w_hr, true),
        peephole(op, "peephole", p, true),
        lengths(op, "lengths", l, true),
        gates(kind == Kind::rnn    ? 1
              : kind == Kind::lstm ? 4
                                   : 3) {
    x.expect_rank(cell ? 2 : 3, cell ? "[batch, input_size]" : "[seq_len, batch, input_size]");
    T = cell ? 1 : x.size(0);
    N = x.size(cell ? 0 : 1);
    I = x.size(cell ? 1 : 2);
    weight_ih.expect_rank(2, layout_ih());
    H = weight_ih.size(0) / gates;
    if (H < 1 || H * gates != weight_ih.size(0))
      throw py::value_error(std::string(op) + ": weight_ih must be " + layout_ih() +
                            " with a hidden_size of at least 1, got " + std::to_string(weight_ih.size(0)) + " rows");
    weight_ih.expect({{rows_name(), gates * H}, {"input_size", I}});
    S = H;
    if (weight_hr) {
      if (kind != Kind::lstm) throw py::type_error(std::string(op) + ": takes no weight_hr");
      weight_hr.expect_rank(2, "[proj_size, hidden_size]");
      S = weight_hr.size(0);
      if (S < 1)
        throw py::value_error(
            std::string(op) +
            ": weight_hr must be [proj_size, hidden_size] with a proj_size of at least 1, got 0 rows");
      weight_hr.expect({{"proj_size", S}, {"hidden_size", H}});
    }
    const char* state_name = weight_hr ? "proj_size" : "hidden_size";
    weight_hh.expect({{rows_name(), gates * H}, {state_name, S}});
    bias_ih.expect({{rows_name(), gates * H}});
    bias_hh.expect({{rows_name(), gates * H}});
    h0.expect({{"batch", N}, {state_name, S}});
    c0.expect({{"batch", N}, {"hidden_size", H}});
    peephole.expect({{"3", 3}, {"hidden_size", H}});
    lengths.expect({{"batch", N}});
    DType type = x.dtype();
    if (!(type == DType::f32 && weight_ih.dtype() == DType::bf16)) weight_ih.expect_dtype(type);
    weight_hh.expect_dtype(weight_ih.dtype());
    weight_hr.expect_dtype(weight_ih.dtype());
    h0.expect_dtype(type);
    for (auto a : {&bias_ih, &bias_hh, &c0, &peephole}) a->expect_accumulator(type, weight_ih.dtype() == DType::bf16);
    lengths.expect_between(0, T);
  }

  const char* rows_name() const {
    return kind == Kind::rnn ? "hidden_size" : kind == Kind::lstm ? "4*hidden_size" : "3*hidden_size";
  }
  const char* layout_ih() const {
    return kind == Kind::rnn    ? "[hidden_size, input_size]"
           : kind == Kind::lstm ? "[4*hidden_size, input_size]"
                                : "[3*hidden_size, input_size]";
  }

  template <class Params>
  void fill(Params& p, std::string_view precision) {
    p.precision = as_precision(op, precision);
    p.dtype = x.dtype();
    p.weight_dtype = weight_ih.dtype();
    p.seq_len = T, p.batch = N, p.input_size = I, p.hidden_size = H, p.proj_size = weight_hr ? S : 0;
    p.lengths = lengths.data();
    p.x = x.data(), p.weight_ih = weight_ih.data(), p.weight_hh = weight_hh.data(), p.weight_hr = weight_hr.data();
    p.bias_ih = bias_ih.accumulator_data(), p.bias_hh = bias_hh.accumulator_data();
    p.peephole = peephole.accumulator_data();
    p.h0 = h0.data(), p.c0 = c0.accumulator_data();
  }

  py::dtype type() const { return x.numpy_dtype(); }
  py::dtype accumulator_type() const { return numpy_dtype(accumulator(x.dtype())); }
  std::vector<index_t> per_step(index_t width) const {
    return cell ? std::vector<index_t>{N, width} : std::vector<index_t>{T, N, width};
  }
};

void* pointer(py::array& a) { return a.mutable_data(); }

// (y or None for a cell, h_n, c_n or None, gates or None, cells or hidden_n or None)
py::tuple forward(Layer& layer, void (*kernel)(const RecurrentForward&), bool flag, bool reverse, bool save,
                  std::string_view precision) {
  RecurrentForward p;
  layer.fill(p, precision);
  p.reverse = reverse;
  p.frozen_ih = frozen(layer.weight_ih.array()), p.frozen_hh = frozen(layer.weight_hh.array());
  p.frozen_hr = frozen(layer.weight_hr.array());
  if (p.frozen_hr == p.frozen_ih || p.frozen_hr == p.frozen_hh) p.frozen_hr = nullptr;  // one layout at a time
  (layer.kind == Kind::rnn ? p.relu : p.reset_after) = flag;
  py::object y = py::none(), c_n = py::none(), gates = py::none(), extra = py::none();
  auto make = [](py::object& to, const py::dtype& type, const std::vector<index_t>& shape) {
    py::array a = empty(type, shape);
    to = a;
    return pointer(a);
  };
  if (!layer.cell) p.y = make(y, layer.type(), layer.per_step(layer.S));
  py::array h_n = empty(layer.type(), {layer.N, layer.S});
  p.h_n = pointer(h_n);
  if (layer.kind == Kind::lstm) p.c_n = make(c_n, layer.accumulator_type(), {layer.N, layer.H});
  if (save && layer.kind != Kind::rnn) {
    p.gates = make(gates, layer.accumulator_type(), layer.per_step(layer.gates * layer.H));
    void* more = nullptr;
    if (layer.kind == Kind::lstm || flag) more = make(extra, layer.accumulator_type(), layer.per_step(layer.H));
    (layer.kind == Kind::lstm ? p.cells : p.hidden_n) = more;
  }
  call(kernel, p);
  return py::make_tuple(y, h_n, c_n, gates, extra);
}

// Saved arrays and incoming gradients of a backward call.
struct Incoming {
  Array y, gates, extra, dy, dh_n, dc_n;
  Incoming(const Layer& l, bool flag, py::handle y_, py::handle gates_, py::handle extra_, py::handle dy_,
           py::handle dh, py::handle dc)
      : y(l.op, l.cell ? "h_new" : "y", y_),
        gates(l.op, "gates", gates_, l.kind == Kind::rnn),
        extra(l.op,
              l.kind == Kind::gru ? "hidden_n"
              : l.cell            ? "c_new"
                                  : "cells",
              extra_, l.kind == Kind::rnn || (l.kind == Kind::gru && !flag)),
        dy(l.op, "dy", dy_, true),
        dh_n(l.op, l.cell ? "dh" : "dh_n", dh, true),
        dc_n(l.op, l.cell ? "dc" : "dc_n", dc, true) {
    auto per_step = [&l](Array& a, const char* name, index_t width) {
      if (l.cell) a.expect({{"batch", l.N}, {name, width}});
      else a.expect({{"seq_len", l.T}, {"batch", l.N}, {name, width}});
    };
    const char* state = l.S != l.H ? "proj_size" : "hidden_size";
    per_step(y, state, l.S);
    per_step(gates, l.rows_name(), l.gates * l.H);
    per_step(extra, "hidden_size", l.H);
    per_step(dy, state, l.S);
    dh_n.expect({{"batch", l.N}, {state, l.S}});
    dc_n.expect({{"batch", l.N}, {"hidden_size", l.H}});
    DType type = l.x.dtype();
    for (auto a : {&y, &dy, &dh_n}) a->expect_dtype(type);
    for (auto a : {&gates, &extra}) a->expect_dtype(accumulator(type));
    dc_n.expect_accumulator(type, type == DType::bf16);
  }
};

// (dx, dh0, dc0, dweight_ih, dweight_hh, dbias_ih, dbias_hh, dweight_hr, dpeephole), None where absent
py::tuple backward(Layer& l, Incoming& in, void (*kernel)(const RecurrentBackward&), bool flag, bool reverse,
                   std::string_view precision) {
  RecurrentBackward p;
  l.fill(p, precision);
  p.reverse = reverse;
  (l.kind == Kind::rnn ? p.relu : p.reset_after) = flag;
  p.y = in.y.data(), p.gates = in.gates.data(), p.dy = in.dy.data(), p.dh_n = in.dh_n.data();
  p.dc_n = in.dc_n.accumulator_data();
  (l.kind == Kind::lstm ? p.cells : p.hidden_n) = in.extra.data();
  py::list out;
  auto make = [&](bool wanted, const py::dtype& type, const std::vector<index_t>& shape) -> void* {
    if (!wanted) {
      out.append(py::none());
      return nullptr;
    }
    py::array a = empty(type, shape);
    out.append(a);
    return pointer(a);
  };
  bool lstm = l.kind == Kind::lstm;
  py::dtype weights = l.accumulator_type();
  p.dx = make(true, l.type(), l.per_step(l.I));
  p.dh0 = make(true, l.type(), {l.N, l.S});
  p.dc0 = make(lstm, weights, {l.N, l.H});
  p.dweight_ih = make(true, weights, {l.gates * l.H, l.I});
  p.dweight_hh = make(true, weights, {l.gates * l.H, l.S});
  p.dbias_ih = make(bool(l.bias_ih), weights, {l.gates * l.H});
  p.dbias_hh = make(bool(l.bias_hh), weights, {l.gates * l.H});
  p.dweight_hr = make(bool(l.weight_hr), weights, {l.S, l.H});
  p.dpeephole = make(bool(l.peephole), weights, {3, l.H});
  call(kernel, p);
  return py::tuple(out);
}

// Called through the interpreter's own vector of arguments: pybind11's dispatch costs as much as a small cell. Errors
// become Python's as they do there.
template <class F>
PyObject* guarded(F f) {
  try {
    return f().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

// What the four functions of a kind of layer are made from.
template <Kind kind, bool cell>
struct Functions {
  static constexpr const char* op = kind == Kind::rnn    ? (cell ? "rnn_cell" : "rnn")
                                    : kind == Kind::lstm ? (cell ? "lstm_cell" : "lstm")
                                                         : (cell ? "gru_cell" : "gru");
  static constexpr auto forward_kernel = kind == Kind::rnn    ? cpu::rnn_forward
                                         : kind == Kind::lstm ? cpu::lstm_forward
                                                              : cpu::gru_forward;
  static constexpr auto backward_kernel = kind == Kind::rnn    ? cpu::rnn_backward
                                          : kind == Kind::lstm ? cpu::lstm_backward
                                                               : cpu::gru_backward;

  static void expect_arguments(Py_ssize_t came, Py_ssize_t wanted) {
    if (came != wanted)
      throw py::type_error(std::string(op) + ": the kernel takes " + std::to_string(wanted) + " arguments, got " +
                           std::to_string(came));
  }
  static std::string_view text(PyObject* object) {
    Py_ssize_t size = 0;
    const char* characters = PyUnicode_AsUTF8AndSize(object, &size);
    if (!characters) throw py::error_already_set();
    return {characters, std::size_t(size)};
  }
  static Layer layer(PyObject* const* a) {
    return Layer(op, kind, cell, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
  }

  // the layer's ten arrays, flag, reverse, save, precision
  static PyObject* forward_call(PyObject*, PyObject* const* a, Py_ssize_t count) {
    return guarded([&] {
      expect_arguments(count, 14);
      Layer l = layer(a);
      return forward(l, forward_kernel, a[10] == Py_True, a[11] == Py_True, a[12] == Py_True, text(a[13]));
    });
  }
  // the layer's ten arrays, flag, reverse, the saved arrays and incoming gradients, precision
  static PyObject* backward_call(PyObject*, PyObject* const* a, Py_ssize_t count) {
    return guarded([&] {
      expect_arguments(count, 19);
      Layer l = layer(a);
      bool flag = a[10] == Py_True;
      Incoming in(l, flag, a[12], a[13], a[14], a[15], a[16], a[17]);
      return backward(l, in, backward_kernel, flag, a[11] == Py_True, text(a[18]));
    });
  }
};

template <Kind kind, bool cell>
void define(py::module_& m) {
  using Of = Functions<kind, cell>;
  static const std::string forward_name = std::string(Of::op) + "_forward",
                           backward_name = std::string(Of::op) + "_backward";
  auto method = [](const std::string& name, _PyCFunctionFast function) {
    return PyMethodDef{name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)),
                       METH_FASTCALL, nullptr};
  };
  static PyMethodDef methods[] = {method(forward_name, Of::forward_call), method(backward_name, Of::backward_call),
                                  PyMethodDef{}};
  if (PyModule_AddFunctions(m.ptr(), methods)) throw py::error_already_set();
}

}  // namespace

void register_recurrent(py::module_& m) {
  define<Kind::rnn, false>(m);
  define<Kind::lstm, false>(m);
  define<Kind::gru, false>(m);
  define<Kind::rnn, true>(m);
  define<Kind::lstm, true>(m);
  define<Kind::gru, true>(m);
}

}  // namespace seqkern
