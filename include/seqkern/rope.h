// Rotary position embedding over rows [rows, dim], of which the first rotary_dim elements are rotated in pairs by
// the angles of the row's position:
//
//   (a, b) -> (a cos - b sin, b cos + a sin)      backward: the same with -sin
//
// Pairs are (i, i + rotary_dim / 2), or (2i, 2i + 1) when interleaved. cos and sin are of the accumulator type,
// [table_rows, width]: width rotary_dim / 2, or rotary_dim when interleaved, where each value stands twice and sin
// has the sign of its place. Row r takes row `table_row[r]` of them, or r % table_rows when that is null.
// Su et al., RoFormer (2021).
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct Rope {
  DType dtype = DType::f32;
  index_t rows = 0, dim = 0, rotary_dim = 0, table_rows = 1;
  bool interleaved = false, inverse = false;
  const void *x = nullptr, *cos = nullptr, *sin = nullptr;
  const index_t* table_row = nullptr;
  void* y = nullptr;
};

namespace cpu {
void rope(const Rope&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's.
namespace cuda {
void rope(const Rope&, void* stream);
}  // namespace cuda

}  // namespace seqkern
