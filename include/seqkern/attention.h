// Scaled dot-product attention, one call over all sequences and heads.
//
//   s_ij = scale q_i . k_j,   capped: softcap tanh(s / softcap),   + bias,   P = softmax_j(s),   out = dropout(P) V
//
//   bias_ij = -slope_h |i + offset - j| + mask_ij;  a position outside the row's keys or with a false mask is -inf
//
// Row i of a sequence of `queries` rows and `keys` keys sees the keys
//   j < keys,   j <= i + offset (causal),   i + offset - left <= j <= i + offset + right (window)
// with offset = keys - queries for bottom_right, else 0. A sink is one more logit of its head without a value.
// A row that sees nothing has out 0 and lse -inf. What is masked is not read as a number: NaN and infinity there
// reach neither outputs nor gradients.
//
// q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], out like q with Dv: elements of a row are adjacent, the
// other strides are free. Query head h reads key head h / (Hq / Hkv). Packed sequences give cu_q, cu_k [B + 1]: the
// batch stride is then 0 and sequence b has rows cu[b] .. cu[b + 1]. Lengths [B] cut padded ones: rows past them are
// 0 in every output.
//
//   D_i = dout_i . out_i,   dP = dropout(dout V'),   ds = P (dP - D)        dropout and the cap by their derivative
//   dq = scale ds K,  dk = scale ds' Q,  dv = dropout(P)' dout,  dmask = ds,  dsink = -sum_i P_sink D_i
//
// Tri Dao et al., FlashAttention (2022): nothing of size Lq Lk is kept, the backward pass computes P again.
#pragma once
#include "seqkern/types.h"

namespace seqkern {

struct AttentionStrides {
  index_t batch = 0, head = 0, row = 0;
};

struct AttentionInputs {
  DType dtype = DType::f32;
  Precision precision = Precision::highest;  // of both products of the forward pass; backward is at highest
  index_t batch = 0, heads = 0, kv_heads = 0, query_len = 0, key_len = 0, head_dim = 0, value_dim = 0;
  AttentionStrides q_strides, k_strides, v_strides, out_strides;  // out_strides: out and dout
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  const index_t *cu_q = nullptr, *cu_k = nullptr, *q_lengths = nullptr, *kv_lengths = nullptr;

  double scale = 1, softcap = 0;  // softcap 0: none
  bool causal = false, bottom_right = false;
  index_t left = -1, right = -1;  // window, -1: open
  const void* mask = nullptr;     // bool (one byte) or of dtype; stride 0 where it is broadcast
  bool mask_is_bool = false;
  index_t mask_strides[4] = {};
  const void* sinks = nullptr;   // [Hq], accumulator type
  const void* slopes = nullptr;  // [B or 1, Hq], accumulator type
  index_t slope_stride = 0;      // between sequences
  double dropout = 0;            // element e of [B, Hq, query_len, key_len] as in elementwise.h, offset 0
  std::uint64_t seed = 0;

  constexpr index_t group() const { return kv_heads ? heads / kv_heads : 0; }
  constexpr index_t queries(index_t b) const {
    if (cu_q) return cu_q[b + 1] - cu_q[b];
    return q_lengths ? q_lengths[b] : query_len;
  }
  constexpr index_t keys(index_t b) const {
    if (cu_k) return cu_k[b + 1] - cu_k[b];
    return kv_lengths ? kv_lengths[b] : key_len;
  }
  // Rows of lse: [B, Hq, query_len], or [Hq, total] when packed.
  constexpr index_t rows() const { return cu_q ? heads * cu_q[batch] : batch * heads * query_len; }
  constexpr index_t row(index_t b, index_t head, index_t i) const {
    return (cu_q ? head * cu_q[batch] + cu_q[b] : (b * heads + head) * query_len) + i;
  }
};

// Keys and values may lie in pages that sequences take in any order: k [pages, page size, Hkv, D], v likewise, and
// sequence b has its key j in row j % page_size of page block_table[b * max_pages + j / page_size]. The batch strides
// of k and v are then those from page to page. kv_lengths say how many keys there are, key_len is the most of them.
struct AttentionForward : AttentionInputs {
  void* out = nullptr;
  void* lse = nullptr;                   // [rows], accumulator type; optional
  void* stats = nullptr;                 // [2, rows], accumulator type, for the backward pass; optional
  void* probs = nullptr;                 // [B, Hq, query_len, key_len], before dropout; optional
  const index_t* block_table = nullptr;  // only where a row of it is in use; optional
  index_t page_size = 0, max_pages = 0;
};

struct AttentionBackward : AttentionInputs {
  const void *out = nullptr, *dout = nullptr, *stats = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;  // laid out as q, k, v, contiguous
  AttentionStrides dq_strides, dk_strides, dv_strides;
  void* dmask = nullptr;          // accumulator type, zeroed by the caller; optional
  index_t dmask_strides[4] = {};  // 0 where it is broadcast
  index_t dmask_count = 0;        // elements
  void* dsinks = nullptr;         // [Hq], accumulator type; optional
};

namespace cpu {
void attention_forward(const AttentionForward&);
void attention_backward(const AttentionBackward&);
}  // namespace cpu

// The same on a CUDA stream (null: the default one); pointers are the device's, those to lengths and offsets too. The
// workspace, of at least the bytes its function names, is 256-byte aligned and holds nothing before or after.
namespace cuda {
std::size_t attention_forward_workspace(const AttentionForward&);
std::size_t attention_backward_workspace(const AttentionBackward&);
void attention_forward(const AttentionForward&, void* workspace, void* stream);
void attention_backward(const AttentionBackward&, void* workspace, void* stream);
}  // namespace cuda

}  // namespace seqkern
