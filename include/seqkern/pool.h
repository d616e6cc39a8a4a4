// Maximum over windows of a plane, as torch's max_pool2d:
//   y[h, w] = max over i, j of x[h*sh - ph + i*dh, w*sw - pw + j*dw],  what lies outside x left out
//   backward:  dx[indices[h, w]] += dy[h, w]
// indices: where in its plane the first maximum in scan order lies, row * width + column; a NaN counts as larger
// than everything, the last one winning. `planes` = batch * channels; every window meets x. All contiguous.
#pragma once
#include "seqkern/conv.h"

namespace seqkern {

struct MaxPoolForward {
  DType dtype = DType::f32;
  index_t planes = 0;
  Size2 in, out, kernel, stride, padding, dilation;
  const void* x = nullptr;
  void* y = nullptr;
  index_t* indices = nullptr;  // null = unwanted
};

struct MaxPoolBackward {
  DType dtype = DType::f32;
  index_t planes = 0, in_size = 0, out_size = 0;  // elements of a plane
  const index_t* indices = nullptr;
  const void* dy = nullptr;
  void* dx = nullptr;
};

namespace cpu {
void max_pool_forward(const MaxPoolForward&);
void max_pool_backward(const MaxPoolBackward&);
}  // namespace cpu

}  // namespace seqkern
