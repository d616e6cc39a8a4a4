// Convolution in two dimensions (one of height 1 is conv1d), as torch's conv2d:
//   y[n, o, h, w] = bias[o] + sum over c, i, j of weight[o, c, i, j] x[n, c, h*sh - ph + i*dh, w*sw - pw + j*dw]
//   with c running over the channels / groups channels of o's group; x is 0 outside.
//   backward:  dx, dweight and dbias are the sums over the same index set of dy weight, dy x and dy.
// x [N, C, H, W], weight [O, C/groups, kh, kw], y [N, O, out_height, out_width]; `padding` counts the zeros before
// the first row and column, those behind the last follow from the output size. x, y and their gradients are of
// `dtype`, weight of `weight_dtype` (equal, or f32 with bf16 weights); bias, dweight and dbias are of the
// accumulator type. All arrays contiguous; null bias = none, null output = unwanted.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct Size2 {
  index_t height = 1, width = 1;
};

struct ConvShape {
  DType dtype = DType::f32, weight_dtype = DType::f32;
  index_t batch = 0, channels = 0, out_channels = 0, groups = 1;
  Size2 in, out, kernel, stride, padding, dilation;
};

struct ConvForward : ConvShape {
  const void *x = nullptr, *weight = nullptr, *bias = nullptr;
  void* y = nullptr;
};

struct ConvBackward : ConvShape {
  const void *x = nullptr, *weight = nullptr, *dy = nullptr;
  void *dx = nullptr, *dweight = nullptr, *dbias = nullptr;
};

namespace cpu {
void conv_forward(const ConvForward&);
void conv_backward(const ConvBackward&);
}  // namespace cpu

}  // namespace seqkern
