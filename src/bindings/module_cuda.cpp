#include "array.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "seqkern's CUDA kernels; use them through seqkern.ops, with CuPy arrays";
  seqkern::register_cuda(m);
  m.def("information", seqkern::device::information);
  m.attr("architectures") = SEQKERN_CUDA_ARCHITECTURES;
}
