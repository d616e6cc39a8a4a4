// The kernels that the bindings call, where those are CUDA's: the bindings say cpu::<kernel>, and in a module for a
// device that name is the CUDA kernel, on the current stream, with a workspace made by the library of the arrays.
#include "array.h"
#include "seqkern/activation.h"
#include "seqkern/attention.h"
#include "seqkern/elementwise.h"
#include "seqkern/embedding.h"
#include "seqkern/layer_norm.h"
#include "seqkern/recurrent.h"
#include "seqkern/rope.h"
#include "seqkern/softmax.h"

namespace seqkern {
namespace {

template <class Params>
void run(const Params& p, void (*kernel)(const Params&, void*)) {
  void* stream = device::stream();
  py::gil_scoped_release release;
  kernel(p, stream);
}

template <class Params>
void run(const Params& p, std::size_t (*size)(const Params&), void (*kernel)(const Params&, void*, void*)) {
  void *stream = device::stream(), *memory = nullptr;
  py::object workspace = device::workspace(size(p), &memory);
  py::gil_scoped_release release;
  kernel(p, memory, stream);
}

}  // namespace

namespace cpu {

void softmax_forward(const SoftmaxForward& p) { run(p, cuda::softmax_forward); }
void softmax_backward(const SoftmaxBackward& p) { run(p, cuda::softmax_backward); }
void cross_entropy_forward(const CrossEntropyForward& p) { run(p, cuda::cross_entropy_forward); }
void cross_entropy_backward(const CrossEntropyBackward& p) { run(p, cuda::cross_entropy_backward); }
void embedding_forward(const EmbeddingForward& p) { run(p, cuda::embedding_forward); }
void embedding_backward(const EmbeddingBackward& p) { run(p, cuda::embedding_backward); }

void rnn_forward(const RecurrentForward& p) { run(p, cuda::rnn_forward_workspace, cuda::rnn_forward); }
void rnn_backward(const RecurrentBackward& p) { run(p, cuda::rnn_backward_workspace, cuda::rnn_backward); }
void lstm_forward(const RecurrentForward& p) { run(p, cuda::lstm_forward_workspace, cuda::lstm_forward); }
void lstm_backward(const RecurrentBackward& p) { run(p, cuda::lstm_backward_workspace, cuda::lstm_backward); }
void gru_forward(const RecurrentForward& p) { run(p, cuda::gru_forward_workspace, cuda::gru_forward); }
void gru_backward(const RecurrentBackward& p) { run(p, cuda::gru_backward_workspace, cuda::gru_backward); }

void layer_norm_forward(const NormForward& p) { run(p, cuda::layer_norm_forward); }
void rms_norm_forward(const NormForward& p) { run(p, cuda::rms_norm_forward); }
void layer_norm_backward(const NormBackward& p) { run(p, cuda::norm_backward_workspace, cuda::layer_norm_backward); }
void rms_norm_backward(const NormBackward& p) { run(p, cuda::norm_backward_workspace, cuda::rms_norm_backward); }

void activation_forward(const ActivationForward& p) { run(p, cuda::activation_forward); }
void activation_backward(const ActivationBackward& p) { run(p, cuda::activation_backward); }
void dropout(const Dropout& p) { run(p, cuda::dropout); }
void sgd_update(const SgdUpdate& p) { run(p, cuda::sgd_update); }
void adagrad_update(const AdagradUpdate& p) { run(p, cuda::adagrad_update); }
void adamw_update(const AdamwUpdate& p) { run(p, cuda::adamw_update); }
void rope(const Rope& p) { run(p, cuda::rope); }

void attention_forward(const AttentionForward& p) {
  run(p, cuda::attention_forward_workspace, cuda::attention_forward);
}
void attention_backward(const AttentionBackward& p) {
  run(p, cuda::attention_backward_workspace, cuda::attention_backward);
}

}  // namespace cpu

void register_cuda(py::module_& m) {
  register_recurrent(m);
  register_layers(m);
  register_layer_norm(m);
  register_activation(m);
  register_elementwise(m);
  register_rope(m);
  register_attention(m);
  register_attention_paged(m);
}

}  // namespace seqkern
