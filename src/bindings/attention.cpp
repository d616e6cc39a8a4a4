// Attention: unpack, check, call. Arrays come as [B, H, L, D], or [total, H, D] for packed sequences.
#include "attention.h"

#include <algorithm>

#include <pybind11/stl.h>

namespace seqkern {
namespace {

constexpr const char* kOp = "scaled_dot_product_attention";
constexpr const char* kPackedOp = "attention_varlen";

// The arrays of one call and the Params over them. Rows are read by stride where their elements are adjacent.
class Call {
 public:
  Call(bool packed, py::handle q_, py::handle k_, py::handle v_, py::handle mask_, py::handle sinks_,
       py::handle slopes_, py::handle q_lengths_, py::handle k_lengths_, const AttentionOptions& options)
      : op(packed ? kPackedOp : kOp),
        packed(packed),
        q(op, "query", q_),
        k(op, "key", k_),
        v(op, "value", v_),
        sinks(op, "sinks", sinks_, true),
        slopes(op, "alibi_slopes", slopes_, true),
        q_lengths(op, packed ? "cu_seqlens_q" : "q_lengths", q_lengths_, !packed),
        k_lengths(op, packed ? "cu_seqlens_kv" : "kv_lengths", k_lengths_, !packed) {
    check_shapes();
    take_lengths();
    take_mask(mask_);
    check_extras();
    options.put(p);
  }

  // After every check: the arrays' memory.
  void take_data() {
    p.q_strides = strides_of(q), p.k_strides = strides_of(k), p.v_strides = strides_of(v);
    p.q = q.array().data(), p.k = k.array().data(), p.v = v.array().data();
    p.sinks = sinks.accumulator_data(), p.slopes = slopes.accumulator_data();
    if (slopes && slopes.rank() == 2) p.slope_stride = p.heads;
  }

  Shape lse_shape() const {
    if (packed) return {p.heads, q.size(0)};
    return {p.batch, p.heads, p.query_len};
  }
  Shape stats_shape() const {
    Shape shape = lse_shape();
    shape.insert(shape.begin(), 2);
    return shape;
  }
  Shape out_shape() const {
    if (packed) return {q.size(0), p.heads, p.value_dim};
    return {p.batch, p.heads, p.query_len, p.value_dim};
  }
  // Strides of a new contiguous array like q, k or v but of this width.
  AttentionStrides contiguous(index_t heads, index_t rows, index_t width) const {
    if (packed) return {0, width, heads * width};
    return {heads * rows * width, rows * width, width};
  }

  AttentionStrides strides_of(Array& a) {
    Shape steps = row_steps(op, a);
    return packed ? AttentionStrides{0, steps[1], steps[0]} : AttentionStrides{steps[0], steps[1], steps[2]};
  }

  const char* op;
  bool packed;
  Array q, k, v, sinks, slopes;
  Integers q_lengths, k_lengths;
  AttentionBackward p;  // the inputs of either pass

 private:
  void check_shapes() {
    const char* layout = packed ? "[total, heads, head_dim]" : "[batch, heads, length, head_dim]";
    int rank = packed ? 3 : 4;
    for (Array* a : {&q, &k, &v}) a->expect_rank(rank, layout);
    for (Array* a : {&k, &v}) a->expect_dtype(q.dtype());
    p.dtype = q.dtype();
    p.batch = packed ? 0 : q.size(0);
    p.heads = q.size(1), p.kv_heads = k.size(1);
    p.query_len = packed ? 0 : q.size(2), p.key_len = packed ? 0 : k.size(2);
    p.head_dim = q.size(rank - 1), p.value_dim = v.size(rank - 1);
    if (packed) {
      k.expect({{"total_kv", k.size(0)}, {"kv_heads", p.kv_heads}, {"head_dim", p.head_dim}});
      v.expect({{"total_kv", k.size(0)}, {"kv_heads", p.kv_heads}, {"value_dim", p.value_dim}});
    } else {
      k.expect({{"batch", p.batch}, {"kv_heads", p.kv_heads}, {"key_len", p.key_len}, {"head_dim", p.head_dim}});
      v.expect({{"batch", p.batch}, {"kv_heads", p.kv_heads}, {"key_len", p.key_len}, {"value_dim", p.value_dim}});
    }
    if (p.head_dim < 1) bad(op, "query must have a head_dim of at least 1, got 0");
    if (p.kv_heads ? p.heads % p.kv_heads : p.heads)
      bad(op, "query must have a multiple of the key's heads = " + std::to_string(p.kv_heads) + ", got " +
                  std::to_string(p.heads));
  }

  void take_mask(py::handle mask_) {
    if (mask_.is_none()) return;
    mask = as_array(op, "attn_mask", mask_);
    p.mask_is_bool = mask.dtype().kind() == 'b';
    if (!p.mask_is_bool) {
      Array as_number(op, "attn_mask", mask_);
      as_number.expect_dtype(q.dtype());
    }
    Shape want{p.batch, p.heads, p.query_len, p.key_len};
    if (Shape(mask.shape(), mask.shape() + mask.ndim()) != want)
      bad(op, "attn_mask must be broadcast to [batch, heads, query_len, key_len] = " + shape_text(want.data(), 4));
    bool whole = true;
    for (int i = 0; i < 4; ++i) whole = whole && mask.strides(i) % mask.itemsize() == 0;
    if (!whole || !(mask.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
      mask = mask.attr("copy")().cast<py::array>();
    p.mask = mask.data();
    for (int i = 0; i < 4; ++i) p.mask_strides[i] = mask.shape(i) > 1 ? mask.strides(i) / mask.itemsize() : 0;
    // A single key or row may have any stride; the kernel reads adjacent keys fastest.
    if (mask.shape(3) == 1) p.mask_strides[3] = 1;
  }

  void check_extras() {
    sinks.expect({{"heads", p.heads}});
    sinks.expect_accumulator(q.dtype(), q.dtype() == DType::bf16);
    if (slopes && slopes.rank() == 2) slopes.expect({{"batch", p.batch}, {"heads", p.heads}});
    else slopes.expect({{"heads", p.heads}});
    slopes.expect_accumulator(q.dtype(), q.dtype() == DType::bf16);
  }

  void take_lengths() {
    if (!packed) {
      q_lengths.expect({{"batch", p.batch}});
      k_lengths.expect({{"batch", p.batch}});
      q_lengths.expect_between(0, p.query_len);
      k_lengths.expect_between(0, p.key_len);
      p.q_lengths = q_lengths.data(), p.kv_lengths = k_lengths.data();
      return;
    }
    p.query_len = offsets(q_lengths, "cu_seqlens_q", q.size(0));
    p.key_len = offsets(k_lengths, "cu_seqlens_kv", k.size(0));
    if (q_lengths.count() != k_lengths.count())
      bad(op, "cu_seqlens_kv must be [sequences + 1] = [" + std::to_string(q_lengths.count()) + "], got [" +
                  std::to_string(k_lengths.count()) + "]");
    p.batch = q_lengths.count() - 1;
    p.cu_q = q_lengths.data(), p.cu_k = k_lengths.data();
  }

  // Checks [0, ..., total], never decreasing; the longest sequence.
  index_t offsets(Integers& cu, const char* name, index_t total) const {
    if (cu.rank() != 1 || cu.count() < 1)
      bad(op, std::string(name) + " must be [sequences + 1] with at least one entry");
    cu.expect_between(0, total);
    const auto& at = cu.values();
    index_t longest = 0;
    for (std::size_t i = 1; i < at.size(); ++i) {
      if (at[i] < at[i - 1])
        bad(op, std::string(name) + " must not decrease, got " + std::to_string(at[i]) + " after " +
                    std::to_string(at[i - 1]));
      longest = std::max(longest, at[i] - at[i - 1]);
    }
    if (at.front() != 0 || at.back() != total)
      bad(op, std::string(name) + " must start with 0 and end with the number of rows, " + std::to_string(total) +
                  ", got " + std::to_string(at.front()) + " and " + std::to_string(at.back()));
    return longest;
  }

  py::array mask = no_array();
};

// (out, lse, stats, probs), None where not wanted. `shape` is that of out: [..., L, Dv].
py::tuple forward(bool packed, py::handle q, py::handle k, py::handle v, py::handle mask, py::handle sinks,
                  py::handle slopes, py::handle q_lengths, py::handle k_lengths, const py::tuple& options,
                  bool with_lse, bool with_stats, bool with_probs, py::handle out_, const Shape& shape) {
  Call c(packed, q, k, v, mask, sinks, slopes, q_lengths, k_lengths, AttentionOptions(options));
  py::array out = output(c.op, "out", out_, c.p.dtype, c.q.numpy_dtype(), shape, {&c.q, &c.k, &c.v});
  c.take_data();
  AttentionForward p;
  static_cast<AttentionInputs&>(p) = c.p;
  p.out = out.mutable_data();
  p.out_strides = c.contiguous(p.heads, p.query_len, p.value_dim);
  py::object lse = py::none(), stats = py::none(), probs = py::none();
  if (with_lse) {
    py::array a = empty(numpy_dtype(accumulator(p.dtype)), c.lse_shape());
    p.lse = a.mutable_data();
    lse = a;
  }
  if (with_stats) {
    py::array a = empty(numpy_dtype(accumulator(p.dtype)), c.stats_shape());
    p.stats = a.mutable_data();
    stats = a;
  }
  if (with_probs) {
    py::array a = empty(c.q.numpy_dtype(), {p.batch, p.heads, p.query_len, p.key_len});
    if (packed) a.attr("fill")(0);  // rows that shorter sequences lack
    p.probs = a.mutable_data();
    probs = a;
  }
  call(cpu::attention_forward, p);
  return py::make_tuple(out, lse, stats, probs);
}

// (dq, dk, dv, dmask or None, dsinks or None); dmask has the shape `mask_shape` [1 or B, 1 or H, ...] when asked for.
py::tuple backward(bool packed, py::handle dout_, py::handle q, py::handle k, py::handle v, py::handle mask,
                   py::handle sinks, py::handle slopes, py::handle q_lengths, py::handle k_lengths,
                   const py::tuple& options, py::handle out_, py::handle stats_, py::object mask_shape) {
  Call c(packed, q, k, v, mask, sinks, slopes, q_lengths, k_lengths, AttentionOptions(options));
  Array dout(c.op, "dout", dout_), out(c.op, "out", out_), stats(c.op, "stats", stats_);
  for (auto [a, name] : {std::pair{&dout, "dout"}, {&out, "out"}}) {
    expect_shape(c.op, name, *a, c.out_shape(), "the shape of the output, ");
    a->expect_dtype(c.p.dtype);
  }
  expect_shape(c.op, "stats", stats, c.stats_shape());
  stats.expect_dtype(accumulator(c.p.dtype));
  c.take_data();
  AttentionBackward& p = c.p;
  p.dout = dout.data(), p.out = out.data(), p.stats = stats.data();
  p.out_strides = c.contiguous(p.heads, p.query_len, p.value_dim);
  p.dq_strides = c.contiguous(p.heads, p.query_len, p.head_dim);
  p.dk_strides = c.contiguous(p.kv_heads, p.key_len, p.head_dim);
  p.dv_strides = c.contiguous(p.kv_heads, p.key_len, p.value_dim);
  py::array dq = empty(c.q.numpy_dtype(), shape_of(c.q)), dk = empty(c.q.numpy_dtype(), shape_of(c.k)),
            dv = empty(c.q.numpy_dtype(), shape_of(c.v));
  p.dq = dq.mutable_data(), p.dk = dk.mutable_data(), p.dv = dv.mutable_data();
  py::dtype wide = numpy_dtype(accumulator(p.dtype));
  py::object dmask = py::none(), dsinks = py::none();
  if (!mask_shape.is_none()) {
    auto shape = mask_shape.cast<Shape>();
    py::array a = empty(wide, shape);
    a.attr("fill")(0);
    p.dmask = a.mutable_data();
    p.dmask_count = a.size();
    for (int i = 0; i < 4; ++i) p.dmask_strides[i] = a.shape(i) > 1 ? a.strides(i) / a.itemsize() : 0;
    dmask = a;
  }
  if (c.sinks) {
    py::array a = empty(wide, {p.heads});
    p.dsinks = a.mutable_data();
    dsinks = a;
  }
  call(cpu::attention_backward, p);
  return py::make_tuple(dq, dk, dv, dmask, dsinks);
}

}  // namespace

void register_attention(py::module_& m) {
  m.def("attention_forward", forward);
  m.def("attention_backward", backward);
}

}  // namespace seqkern
