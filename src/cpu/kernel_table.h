// Every CPU kernel, one function pointer each, filled once per instruction set by kernel_table.cpp. A kernel
// that an instruction set lacks is an undefined symbol: the build fails.
#pragma once
#include "seqkern/activation.h"
#include "seqkern/attention.h"
#include "seqkern/batch_norm.h"
#include "seqkern/conv.h"
#include "seqkern/elementwise.h"
#include "seqkern/embedding.h"
#include "seqkern/layer_norm.h"
#include "seqkern/linear.h"
#include "seqkern/pool.h"
#include "seqkern/recurrent.h"
#include "seqkern/rope.h"
#include "seqkern/softmax.h"

// Those with a path of their own on a matrix unit (simd/tiles.h).
#define SEQKERN_TILE_KERNELS(X)          \
  X(rnn_forward, RecurrentForward)       \
  X(rnn_backward, RecurrentBackward)     \
  X(lstm_forward, RecurrentForward)      \
  X(lstm_backward, RecurrentBackward)    \
  X(gru_forward, RecurrentForward)       \
  X(gru_backward, RecurrentBackward)     \
  X(linear_forward, LinearForward)       \
  X(linear_backward, LinearBackward)     \
  X(linear_int8, LinearInt8)             \
  X(attention_forward, AttentionForward) \
  X(attention_backward, AttentionBackward)

#define SEQKERN_OTHER_KERNELS(X)                  \
  X(softmax_forward, SoftmaxForward)              \
  X(softmax_backward, SoftmaxBackward)            \
  X(cross_entropy_forward, CrossEntropyForward)   \
  X(cross_entropy_backward, CrossEntropyBackward) \
  X(embedding_forward, EmbeddingForward)          \
  X(embedding_backward, EmbeddingBackward)        \
  X(layer_norm_forward, NormForward)              \
  X(layer_norm_backward, NormBackward)            \
  X(rms_norm_forward, NormForward)                \
  X(rms_norm_backward, NormBackward)              \
  X(batch_norm_forward, BatchNormForward)         \
  X(batch_norm_backward, BatchNormBackward)       \
  X(rope, Rope)                                   \
  X(activation_forward, ActivationForward)        \
  X(activation_backward, ActivationBackward)      \
  X(conv_forward, ConvForward)                    \
  X(conv_backward, ConvBackward)                  \
  X(max_pool_forward, MaxPoolForward)             \
  X(max_pool_backward, MaxPoolBackward)           \
  X(dropout, Dropout)                             \
  X(sgd_update, SgdUpdate)                        \
  X(adagrad_update, AdagradUpdate)                \
  X(adamw_update, AdamwUpdate)                    \
  X(map, Map)                                     \
  X(probe_fma, Probe)                             \
  X(probe_read, Probe)

#define SEQKERN_KERNELS(X) SEQKERN_TILE_KERNELS(X) SEQKERN_OTHER_KERNELS(X)

namespace seqkern {

struct KernelTable {
  const char* isa;
#define SEQKERN_MEMBER(name, Params) void (*name)(const Params&);
  SEQKERN_KERNELS(SEQKERN_MEMBER)
#undef SEQKERN_MEMBER
};

}  // namespace seqkern
