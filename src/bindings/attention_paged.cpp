// Attention against keys and values in pages: unpack, check, call. Query [B, Hq, L, D], pages [pages, size, Hkv, D].
#include <algorithm>
#include <limits>

#include "attention.h"

namespace seqkern {
namespace {

constexpr const char* kOp = "attention_paged";

std::string text(index_t n) { return std::to_string(n); }

// Pages of every sequence, [batch, width]; only the entries that its length reaches are looked at. On a device nobody
// looks at any: the table's width is how far a sequence may go, and what lies outside is moved inside.
class BlockTable {
 public:
  BlockTable(py::handle table, py::handle lengths, index_t batch, index_t pages, index_t page_size)
      : table_(kOp, "block_table", table), lengths_(kOp, "kv_lengths", lengths) {
    if (table_.rank() != 2)
      bad(kOp, "block_table must be [batch, max_pages], got shape " + shape_text(shape_of(table_)));
    index_t max_pages = table_.array().shape(1), capacity;
    table_.expect({{"batch", batch}, {"max_pages", max_pages}});
    lengths_.expect({{"batch", batch}});
    if (__builtin_mul_overflow(max_pages, page_size, &capacity)) capacity = std::numeric_limits<index_t>::max();
#if defined(SEQKERN_DEVICE_ARRAYS)
    if (capacity > std::numeric_limits<std::int32_t>::max())
      bad(kOp, "block_table must have room for fewer than 2^31 keys of a sequence on a GPU, got " + text(max_pages) +
                   " pages of " + text(page_size));
    longest_ = pages ? capacity : 0, width_ = max_pages;
    lengths_.expect_between(0, longest_);
    table_.expect_between(0, pages - 1);
#else
    lengths_.expect_between(0, capacity);
    for (index_t b = 0; b < batch; ++b) longest_ = std::max(longest_, lengths_.data()[b]);
    width_ = page_size ? ceil_div(longest_, page_size) : 0;
    py::object used = table_.array()[py::make_tuple(py::ellipsis(), py::slice(0, width_, 1))];
    table_ = Integers(kOp, "block_table", used);
    constexpr index_t kAny = std::numeric_limits<index_t>::max();
    table_.expect_between(-kAny - 1, kAny);
    for (index_t b = 0; b < batch; ++b)
      for (index_t i = 0; i * page_size < lengths_.data()[b]; ++i) {
        index_t page = table_.data()[b * width_ + i];
        if (page < 0 || page >= pages)
          bad(kOp, "block_table must lie in [0, pages) = [0, " + text(pages) + ") where kv_lengths reach, got " +
                       text(page) + " at [" + text(b) + ", " + text(i) + "]");
      }
#endif
  }

  void put(AttentionForward& p) const {
    p.block_table = table_.data(), p.max_pages = width_;
    p.kv_lengths = lengths_.data(), p.key_len = longest_;
  }

 private:
  Integers table_, lengths_;
  index_t longest_ = 0, width_ = 0;
};

// (out, lse or None)
py::tuple forward(py::handle q_, py::handle k_, py::handle v_, py::handle block_table, py::handle kv_lengths,
                  py::handle q_lengths_, py::handle sinks_, py::handle slopes_, const py::tuple& options, bool with_lse,
                  py::handle out_) {
  Array q(kOp, "query", q_), k(kOp, "key_pages", k_), v(kOp, "value_pages", v_);
  Array sinks(kOp, "sinks", sinks_, true), slopes(kOp, "alibi_slopes", slopes_, true);
  Integers q_lengths(kOp, "q_lengths", q_lengths_, true);
  q.expect_rank(4, "[batch, heads, length, head_dim]");
  for (Array* a : {&k, &v}) {
    a->expect_rank(4, "[pages, page_size, kv_heads, head_dim]");
    a->expect_dtype(q.dtype());
  }
  AttentionForward p;
  p.dtype = q.dtype();
  p.batch = q.size(0), p.heads = q.size(1), p.query_len = q.size(2), p.head_dim = q.size(3);
  index_t pages = k.size(0);
  p.page_size = k.size(1), p.kv_heads = k.size(2), p.value_dim = v.size(3);
  k.expect({{"pages", pages}, {"page_size", p.page_size}, {"kv_heads", p.kv_heads}, {"head_dim", p.head_dim}});
  v.expect({{"pages", pages}, {"page_size", p.page_size}, {"kv_heads", p.kv_heads}, {"value_dim", p.value_dim}});
  if (p.head_dim < 1) bad(kOp, "query must have a head_dim of at least 1, got 0");
  if (p.kv_heads ? p.heads % p.kv_heads : p.heads)
    bad(kOp, "query must have a multiple of the pages' heads = " + text(p.kv_heads) + ", got " + text(p.heads));
  sinks.expect({{"heads", p.heads}});
  if (slopes && slopes.rank() == 2) slopes.expect({{"batch", p.batch}, {"heads", p.heads}});
  else slopes.expect({{"heads", p.heads}});
  for (Array* a : {&sinks, &slopes}) a->expect_accumulator(q.dtype(), q.dtype() == DType::bf16);
  q_lengths.expect({{"batch", p.batch}});
  q_lengths.expect_between(0, p.query_len);
  BlockTable table(block_table, kv_lengths, p.batch, pages, p.page_size);
  table.put(p);
  Shape shape{p.batch, p.heads, p.query_len, p.value_dim};
  py::array out = output(kOp, "out", out_, p.dtype, q.numpy_dtype(), shape, {&q, &k, &v});

  AttentionOptions(options).put(p);
  Shape steps = row_steps(kOp, q);
  p.q_strides = {steps[0], steps[1], steps[2]};
  for (auto [a, strides] : {std::pair{&k, &p.k_strides}, {&v, &p.v_strides}}) {
    steps = row_steps(kOp, *a);
    *strides = {steps[0], steps[2], steps[1]};
  }
  p.q = q.array().data(), p.k = k.array().data(), p.v = v.array().data();
  p.sinks = sinks.accumulator_data(), p.slopes = slopes.accumulator_data();
  if (slopes && slopes.rank() == 2) p.slope_stride = p.heads;
  p.q_lengths = q_lengths.data();
  p.out = out.mutable_data();
  p.out_strides = {p.heads * p.query_len * p.value_dim, p.query_len * p.value_dim, p.value_dim};
  py::object lse = py::none();
  if (with_lse) {
    py::array a = empty(numpy_dtype(accumulator(p.dtype)), {p.batch, p.heads, p.query_len});
    p.lse = a.mutable_data();
    lse = a;
  }
  call(cpu::attention_forward, p);
  return py::make_tuple(out, lse);
}

}  // namespace

void register_attention_paged(py::module_& m) { m.def("attention_paged", forward); }

}  // namespace seqkern
