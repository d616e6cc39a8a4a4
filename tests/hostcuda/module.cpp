// _hostcuda: what _cuda is, run by runtime.h. It stands where _cpu stands below ops, or behind CuPy's name where
// _cuda stands.
#include "bindings/array.h"
#include "hostcuda/runtime.h"

namespace seqkern {
namespace device {
void use_arrays(const std::string& library);
}
namespace {

void configure(const std::string& order, bool deferred, std::uint64_t seed, int max_shared, int max_cluster,
               int max_together) {
  using hostcuda::Order;
  hostcuda::config = {order == "reverse"  ? Order::reverse
                      : order == "random" ? Order::random
                                          : Order::forward,
                      seed,
                      deferred,
                      max_shared,
                      max_cluster,
                      max_together};
}

}  // namespace
}  // namespace seqkern

PYBIND11_MODULE(_hostcuda, m) {
  m.doc() = "seqkern's CUDA kernels, executed on the host";
  seqkern::register_cuda(m);
  namespace py = pybind11;
  m.def("use_arrays", seqkern::device::use_arrays);
  m.def("configure", seqkern::configure, py::kw_only(), py::arg("order") = "forward", py::arg("deferred") = false,
        py::arg("seed") = 1, py::arg("max_shared") = 227 * 1024, py::arg("max_cluster") = 8,
        py::arg("max_together") = 0);
}
