// Threads, instruction sets, machine probes, and hooks for the tests.
#include <pybind11/stl.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "array.h"
#include "seqkern/elementwise.h"
#include "seqkern/isa.h"

// For threadpoolctl, which finds libraries by their symbols.
extern "C" __attribute__((visibility("default"))) int seqkern_get_num_threads() { return seqkern::num_threads(); }
extern "C" __attribute__((visibility("default"))) void seqkern_set_num_threads(int n) { seqkern::set_num_threads(n); }

namespace seqkern {
namespace {

py::array map(const std::string& name, py::handle x_) {
  Array x("math_eval", "x", x_);
  x.expect_dtype(DType::f32);
  Map p{Function::exp, x.array().size(), static_cast<const float*>(x.data())};
  if (name == "tanh") p.function = Function::tanh;
  else if (name == "sigmoid") p.function = Function::sigmoid;
  else if (name == "erf") p.function = Function::erf;
  else if (name == "round_bf16") p.function = Function::round_bf16;
  else if (name != "exp")
    throw py::value_error("math_eval: name must be exp, tanh, sigmoid, erf or round_bf16, got '" + name + "'");
  py::array y = empty(py::dtype::of<float>(), {p.count});
  p.y = static_cast<float*>(y.mutable_data());
  call(cpu::map, p);
  return y;
}

double probe(void (*kernel)(const Probe&), double seconds, int threads, index_t bytes) {
  if (threads < 1 || threads > 1024)
    throw py::value_error("probe: threads must be 1..1024, got " + std::to_string(threads));
  double result = 0;
  call(kernel, Probe{threads, seconds, bytes, &result});
  return result;
}

// What was freed between blocks that are in use, which malloc would keep for good.
void give_back_memory() {
#if defined(__GLIBC__)
  py::gil_scoped_release release;
  malloc_trim(0);
#endif
}

}  // namespace

void register_runtime(py::module_& m) {
  m.def("get_num_threads", num_threads);
  m.def("set_num_threads", set_num_threads);
  m.def("active_isa", active_isa);
  m.def("available_isas", available_isas);
  m.def("set_isa", set_isa);
  m.def("fail_allocation", fail_allocation);
  m.def("give_back_memory", give_back_memory);
  m.def("math_eval", map);
  m.def("probe_fma", [](double seconds, int threads) { return probe(cpu::probe_fma, seconds, threads, 0); });
  m.def("probe_read",
        [](index_t bytes, double seconds, int threads) { return probe(cpu::probe_read, seconds, threads, bytes); });
  m.attr("compiler") = SEQKERN_COMPILER;
  m.attr("build_type") = SEQKERN_BUILD_TYPE;
}

}  // namespace seqkern
