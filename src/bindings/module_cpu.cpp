#include "array.h"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "seqkern's CPU kernels; use them through seqkern.ops";
  seqkern::register_recurrent(m);
  seqkern::register_layers(m);
  seqkern::register_linear(m);
  seqkern::register_conv(m);
  seqkern::register_elementwise(m);
  seqkern::register_activation(m);
  seqkern::register_layer_norm(m);
  seqkern::register_batch_norm(m);
  seqkern::register_rope(m);
  seqkern::register_attention(m);
  seqkern::register_attention_paged(m);
  seqkern::register_runtime(m);
  seqkern::register_frozen(m);
}
