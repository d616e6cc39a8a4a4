// From the run-time types of the parameters to the storage types of the kernels.
#pragma once
#include "cuda/device.cuh"

namespace seqkern::cuda {

// Calls run<T>() ...
template <class Run>
void for_type(DType dtype, Run run) {
  if (dtype == DType::f64) return run.template operator()<double>();
  if (dtype == DType::bf16) return run.template operator()<bf16>();
  if (dtype == DType::f16) return run.template operator()<f16>();
  return run.template operator()<float>();
}

// ... or run<T, W>(), W being the type of weight matrices.
template <class Run>
void for_types(DType dtype, DType weight_dtype, Run run) {
  if (dtype == DType::f64) return run.template operator()<double, double>();
  if (dtype == DType::bf16) return run.template operator()<bf16, bf16>();
  if (dtype == DType::f16) return run.template operator()<f16, f16>();
  if (weight_dtype == DType::bf16) return run.template operator()<float, bf16>();
  return run.template operator()<float, float>();
}

}  // namespace seqkern::cuda
