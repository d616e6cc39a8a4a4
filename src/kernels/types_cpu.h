// From the run-time types of the parameters to the storage types of the kernels.
#pragma once
#include "seqkern/types.h"
#include "simd/tiles.h"

namespace seqkern::SEQKERN_ISA {

// Whether this instruction set has kernels of its own for these types; otherwise those of SEQKERN_OTHERS do as well.
constexpr bool owns([[maybe_unused]] DType dtype, [[maybe_unused]] DType weight_dtype) {
#if defined(SEQKERN_OTHERS)
  if (!kTileRegisters) return dtype == DType::bf16 || weight_dtype == DType::bf16;
  return dtype != DType::f64;
#else
  return true;
#endif
}

// Calls run<T, W>() for the storage types of the parameters.
template <class Run>
void for_types(DType dtype, DType weight_dtype, Run run) {
  auto own = [&]<class T, DType t, class W, DType w>() {
    if constexpr (owns(t, w)) run.template operator()<T, W>();
  };
  constexpr DType f32 = DType::f32, f64 = DType::f64, bf = DType::bf16;
  if (dtype == f64) return own.template operator()<double, f64, double, f64>();
  if (dtype == bf) return own.template operator()<bf16, bf, bf16, bf>();
  if (weight_dtype == bf) return own.template operator()<float, f32, bf16, bf>();
  return own.template operator()<float, f32, float, f32>();
}

template <class Run>
void for_type(DType dtype, Run run) {
  for_types(dtype, dtype, [&]<class T, class W>() {
    if constexpr (std::is_same_v<T, W>) run.template operator()<T>();
  });
}

}  // namespace seqkern::SEQKERN_ISA
