// From the run-time types of the parameters to the storage types of the kernels.
#pragma once
#include "seqkern/types.h"

namespace seqkern::SEQKERN_ISA {

// Calls run<T, W>() for the storage types of the parameters.
template <class Run>
void for_types(DType dtype, DType weight_dtype, Run run) {
  if (dtype == DType::f64) return run.template operator()<double, double>();
  if (dtype == DType::bf16) return run.template operator()<bf16, bf16>();
  if (weight_dtype == DType::bf16) return run.template operator()<float, bf16>();
  return run.template operator()<float, float>();
}

template <class Run>
void for_type(DType dtype, Run run) {
  if (dtype == DType::f64) return run.template operator()<double>();
  if (dtype == DType::bf16) return run.template operator()<bf16>();
  return run.template operator()<float>();
}

}  // namespace seqkern::SEQKERN_ISA
