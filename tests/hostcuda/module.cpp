// _hostcuda: the CUDA kernels behind the CPU's own bindings, so that they stand where _cpu stands below ops.py and
// get the same checks. The bindings call cpu::<kernel>; here that name is the CUDA kernel, run by runtime.h.
#include "bindings/array.h"
#include "hostcuda/runtime.h"
#include "seqkern/activation.h"
#include "seqkern/attention.h"
#include "seqkern/elementwise.h"
#include "seqkern/embedding.h"
#include "seqkern/layer_norm.h"
#include "seqkern/linear.h"
#include "seqkern/recurrent.h"
#include "seqkern/rope.h"
#include "seqkern/softmax.h"

namespace seqkern {
namespace {

void configure(const std::string& order, bool deferred, std::uint64_t seed, int max_shared, int max_cluster) {
  using hostcuda::Order;
  hostcuda::config = {order == "reverse"  ? Order::reverse
                      : order == "random" ? Order::random
                                          : Order::forward,
                      seed, deferred, max_shared, max_cluster};
}

template <class Params, class Size, class Kernel>
void with_workspace(const Params& p, Size size, Kernel kernel) {
  std::vector<unsigned char> workspace(size(p) + 256, 0xff);  // NaN, so that reading what nobody wrote shows
  auto aligned = (reinterpret_cast<std::uintptr_t>(workspace.data()) + 255) / 256 * 256;
  kernel(p, reinterpret_cast<void*>(aligned), nullptr);
}

}  // namespace

namespace cpu {

void softmax_forward(const SoftmaxForward& p) { cuda::softmax_forward(p, nullptr); }
void softmax_backward(const SoftmaxBackward& p) { cuda::softmax_backward(p, nullptr); }
void cross_entropy_forward(const CrossEntropyForward& p) { cuda::cross_entropy_forward(p, nullptr); }
void cross_entropy_backward(const CrossEntropyBackward& p) { cuda::cross_entropy_backward(p, nullptr); }
void embedding_forward(const EmbeddingForward& p) { cuda::embedding_forward(p, nullptr); }
void embedding_backward(const EmbeddingBackward& p) { cuda::embedding_backward(p, nullptr); }

void rnn_forward(const RecurrentForward& p) { with_workspace(p, cuda::rnn_forward_workspace, cuda::rnn_forward); }
void rnn_backward(const RecurrentBackward& p) { with_workspace(p, cuda::rnn_backward_workspace, cuda::rnn_backward); }
void lstm_forward(const RecurrentForward& p) { with_workspace(p, cuda::lstm_forward_workspace, cuda::lstm_forward); }
void lstm_backward(const RecurrentBackward& p) {
  with_workspace(p, cuda::lstm_backward_workspace, cuda::lstm_backward);
}
void gru_forward(const RecurrentForward& p) { with_workspace(p, cuda::gru_forward_workspace, cuda::gru_forward); }
void gru_backward(const RecurrentBackward& p) { with_workspace(p, cuda::gru_backward_workspace, cuda::gru_backward); }

void layer_norm_forward(const NormForward& p) { cuda::layer_norm_forward(p, nullptr); }
void rms_norm_forward(const NormForward& p) { cuda::rms_norm_forward(p, nullptr); }
void layer_norm_backward(const NormBackward& p) {
  with_workspace(p, cuda::norm_backward_workspace, cuda::layer_norm_backward);
}
void rms_norm_backward(const NormBackward& p) {
  with_workspace(p, cuda::norm_backward_workspace, cuda::rms_norm_backward);
}

void activation_forward(const ActivationForward& p) { cuda::activation_forward(p, nullptr); }
void activation_backward(const ActivationBackward& p) { cuda::activation_backward(p, nullptr); }
void dropout(const Dropout& p) { cuda::dropout(p, nullptr); }
void rope(const Rope& p) { cuda::rope(p, nullptr); }

void attention_forward(const AttentionForward& p) {
  with_workspace(p, cuda::attention_forward_workspace, cuda::attention_forward);
}
void attention_backward(const AttentionBackward& p) {
  with_workspace(p, cuda::attention_backward_workspace, cuda::attention_backward);
}

// Nobody has asked for them on the GPU yet.
void sgd_update(const SgdUpdate&) { hostcuda::fail("sgd_update has no CUDA kernel"); }
void adagrad_update(const AdagradUpdate&) { hostcuda::fail("adagrad_update has no CUDA kernel"); }
void adamw_update(const AdamwUpdate&) { hostcuda::fail("adamw_update has no CUDA kernel"); }

// On the GPU these are cuBLAS's; no kernel of ours stands behind them and no test asks them to be right.
void linear_forward(const LinearForward&) { hostcuda::fail("linear has no CUDA kernel"); }
void linear_backward(const LinearBackward&) { hostcuda::fail("linear has no CUDA kernel"); }

}  // namespace cpu
}  // namespace seqkern

PYBIND11_MODULE(_hostcuda, m) {
  m.doc() = "seqkern's CUDA kernels, executed on the host";
  seqkern::register_recurrent(m);
  seqkern::register_layers(m);
  seqkern::register_layer_norm(m);
  seqkern::register_activation(m);
  seqkern::register_elementwise(m);
  seqkern::register_rope(m);
  seqkern::register_attention(m);
  namespace py = pybind11;
  m.def("configure", seqkern::configure, py::kw_only(), py::arg("order") = "forward", py::arg("deferred") = false,
        py::arg("seed") = 1, py::arg("max_shared") = 227 * 1024, py::arg("max_cluster") = 8);
}
