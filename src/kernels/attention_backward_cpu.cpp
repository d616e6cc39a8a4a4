// Attention backward: scores and probabilities computed again block by block, nothing of size Lq Lk kept.
//
// A thread owns the keys of one head (or a stripe of them, when heads are few): for 128 keys at a time it goes through
// all query rows, gathers dk and dv of these keys, and adds to a dq of its own. Stripes and the order of every sum
// depend on the shapes alone, so results do not depend on the number of threads. The gradient of a mask that is
// broadcast is summed over eight fixed groups of heads, and these then in order.
#include <algorithm>
#include <new>

#include "attention_backward_products.h"
#include "attention_mend.h"
#include "types_cpu.h"

namespace seqkern::SEQKERN_ISA {
namespace {

template <class T, class Products>
class BackwardAttention {
  using A = acc_t<T>;
  using V = Vec<A>;
  using Blocks = typename Products::Blocks;
  static constexpr int L = kLanes<A>, P = Products::kWidth, kRows = Products::kRows;
  static constexpr index_t kStripe = 1024, kStripes = 8, kGroups = 8;

 public:
  explicit BackwardAttention(const AttentionBackward& params)
      : p(params),
        score(params),
        G(p.group()),
        D(p.head_dim),
        Dv(p.value_dim),
        Dp(round_up(D, P)),
        Dvp(round_up(Dv, P)),
        R(round_up(G * p.query_len, index_t(kRows))) {}

  void run() {
    index_t pairs = p.batch * p.kv_heads;
    if (p.dsinks) std::fill_n(static_cast<A*>(p.dsinks), p.heads, A{});
    if (pairs == 0) return;
    Job job;
    stripe = pairs >= 4 * kStripes ? p.key_len : std::max(kStripe, ceil_div(p.key_len, kStripes));
    stripe = std::max<index_t>(round_up(stripe, kKeyBlock), kKeyBlock);
    stripes = std::max<index_t>(ceil_div(p.key_len, stripe), 1);
    index_t items = pairs * stripes;
    bool shared = p.dmask && ((!p.dmask_strides[0] && p.batch > 1) || (!p.dmask_strides[1] && p.heads > 1) ||
                              (!p.dmask_strides[3] && stripes > 1));
    index_t groups = shared ? std::min(kGroups, items) : items;
    double work = double(p.batch * p.heads * p.query_len) * double(p.key_len) * double(3 * D + 2 * Dv);
    int threads = int(std::min<index_t>(threads_for(work, 1.0e5), groups));
    take(job, threads, pairs, shared ? groups : 0);
    index_t next = 0;
    auto body = [&](int rank, int n, Barrier& barrier) {
      Space& mine = spaces[rank];
      TileScope scope(std::is_same_v<Products, TileProducts>);
      for (index_t group; (group = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < groups;) {
        mine.dmask = shared ? partial_masks + group * p.dmask_count : static_cast<A*>(p.dmask);
        for (index_t i = group; i < items; i += groups) item(i / stripes, i % stripes, mine);
      }
      barrier.wait();
      Range own = share(p.dmask_count, rank, n);
      if (shared)
        for (index_t e = own.begin; e < own.end; ++e)
          for (index_t g = 0; g < groups; ++g) static_cast<A*>(p.dmask)[e] += partial_masks[g * p.dmask_count + e];
      own = share(pairs, rank, n);
      if (stripes > 1)
        for (index_t pair = own.begin; pair < own.end; ++pair) join(pair);
    };
    job.run(threads, body);
    if (p.dsinks)
      for (index_t e = 0; e < p.batch * p.heads; ++e) static_cast<A*>(p.dsinks)[e % p.heads] += partial_sinks[e];
    if (score.masked) mend_gradients<T>(p, score, job);
  }

 private:
  // A thread's memory. Rows: those of all query heads of the group, in blocks of kRows.
  struct Space {
    Products products;
    A *max, *inverse, *delta, *dq;  // [R] three times, [R, Dp]
    A *dk, *dv, *probs, *ds;        // [128, Dp], [128, Dvp], [kRows, 128] twice
    A* dmask;
    QueryRow<A> row[kRows];
    explicit Space(const Products& empty) : products(empty) {}
  };

  void take(Job& job, int threads, index_t pairs, index_t groups) {
    const index_t sizes[] = {R, R, R, R * Dp, kKeyBlock * Dp, kKeyBlock * Dvp, kRows * kKeyBlock, kRows * kKeyBlock};
    spaces = job.take<Space>(threads);
    for (int i = 0; i < threads; ++i) {
      Space& x = *new (spaces + i) Space(Products(R, D, Dv));
      x.products.take(job);
      A** parts[] = {&x.max, &x.inverse, &x.delta, &x.dq, &x.dk, &x.dv, &x.probs, &x.ds};
      for (int k = 0; k < 8; ++k) *parts[k] = job.take<A>(sizes[k]);
    }
    if (stripes > 1) partial_dq = job.take<A>(pairs * stripes * R * D);
    if (p.dsinks) partial_sinks = job.take<A>(p.batch * p.heads);
    if (groups) {
      partial_masks = job.take<A>(groups * p.dmask_count);
      std::fill_n(partial_masks, groups * p.dmask_count, A{});
    }
  }
  template <class S>
  static S* rows_of(S* base, const AttentionStrides& s, const index_t* cu, index_t b, index_t head) {
    return base + b * s.batch + head * s.head + (cu ? cu[b] * s.row : 0);
  }

  void item(index_t pair, index_t part, Space& x) const {
    index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads, rows = G * p.queries(b), keys = p.keys(b);
    load_queries(b, kv_head, x);
    std::fill_n(x.dq, rows * Dp, A{});
    index_t end = std::min((part + 1) * stripe, p.key_len);
    for (index_t key = part * stripe; key < end; key += kKeyBlock) {
      index_t count = std::min<index_t>(kKeyBlock, keys - key);
      if (count > 0) {
        load_keys(b, kv_head, key, count, x);
        for (index_t first = 0; first < rows; first += kRows)
          tile(b, kv_head, key, first, int(std::min<index_t>(kRows, rows - first)), x);
      }
      store_keys(b, kv_head, key, count, x);
    }
    if (part == 0 && p.dsinks) sink_gradient(b, kv_head, x);
    if (stripes == 1) store_queries(b, kv_head, x.dq, Dp);
    else
      for (index_t r = 0; r < rows; ++r)
        std::copy_n(x.dq + r * Dp, D, partial_dq + ((pair * stripes + part) * R + r) * D);
  }

  void load_queries(index_t b, index_t kv_head, Space& x) const {
    index_t queries = p.queries(b), rows = G * queries;
    for (index_t g = 0; g < G; ++g) {
      index_t head = kv_head * G + g, at = g * queries;
      auto q = rows_of(static_cast<const T*>(p.q), p.q_strides, p.cu_q, b, head);
      auto dout = rows_of(static_cast<const T*>(p.dout), p.out_strides, p.cu_q, b, head);
      auto out = rows_of(static_cast<const T*>(p.out), p.out_strides, p.cu_q, b, head);
      auto stats = static_cast<const A*>(p.stats) + p.row(b, head, 0);
      x.products.load_rows({q, p.q_strides.row}, {dout, p.out_strides.row}, at, queries);
      for (index_t i = 0; i < queries; ++i) {
        V sum{};
        for (index_t d = 0; d < Dv; d += L) {
          int n = int(std::min<index_t>(L, Dv - d));
          V o = load_n(out + i * p.out_strides.row + d, n), up = load_n(dout + i * p.out_strides.row + d, n);
          sum = sum + (o == 0 ? V{} : o * up);  // a row that sees nothing takes no NaN from dout
        }
        x.delta[at + i] = sum_lanes(sum);
        x.max[at + i] = stats[i], x.inverse[at + i] = stats[p.rows() + i];
      }
    }
    x.products.rows_loaded(rows);
  }

  void load_keys(index_t b, index_t kv_head, index_t key, index_t count, Space& x) const {
    auto k = rows_of(static_cast<const T*>(p.k), p.k_strides, p.cu_k, b, kv_head) + key * p.k_strides.row;
    auto v = rows_of(static_cast<const T*>(p.v), p.v_strides, p.cu_k, b, kv_head) + key * p.v_strides.row;
    x.products.load_keys({k, p.k_strides.row}, {v, p.v_strides.row}, count);
    std::fill_n(x.dk, kKeyBlock * Dp, A{});
    std::fill_n(x.dv, kKeyBlock * Dvp, A{});
  }

  // The rows of one block against the keys [key, key + kKeyBlock).
  void tile(index_t b, index_t kv_head, index_t key, index_t first, int rows, Space& x) const {
    Blocks blocks(rows);
    blocks.top = rows;
    for (index_t i = 0; i < blocks.count; ++i) {
      index_t &low = blocks.low[i] = kKeyBlock, &high = blocks.high[i] = 0;
      for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r) {
        x.row[r] = score.row(b, kv_head, first + r);
        if (x.row[r].low >= x.row[r].high) continue;
        low = std::min(low, std::max<index_t>(x.row[r].low - key, 0) / P * P);
        index_t end = round_up(std::max<index_t>(x.row[r].high - key, 0), index_t(Products::kStep));
        high = std::max(high, std::min<index_t>(end, kKeyBlock));
      }
      if (blocks.any(i)) blocks.top = std::min(blocks.top, blocks.begin(i)), blocks.bottom = blocks.begin(i + 1);
    }
    if (blocks.top >= blocks.bottom) return;
    x.products.scores(first, blocks, x.probs, x.ds);
    for (index_t i = 0; i < blocks.count; ++i)
      for (index_t r = blocks.begin(i); r < blocks.begin(i + 1); ++r) {
        A *probs = x.probs + r * kKeyBlock, *ds = x.ds + r * kKeyBlock;
        for (A* line : {probs, ds}) {
          std::fill(line, line + (blocks.any(i) ? blocks.low[i] : kKeyBlock), A{});
          if (blocks.any(i)) std::fill(line + blocks.high[i], line + kKeyBlock, A{});
        }
        if (blocks.any(i))
          gradients(b, x.row[r], key, blocks.low[i], blocks.high[i], x.max[first + r], x.inverse[first + r],
                    x.delta[first + r], probs, ds, x.dmask);
      }
    x.products.gradients(first, blocks, x.probs, x.ds, x.dq, x.dk, x.dv);
  }

  // probs: raw products into dropout(P). ds: dout V' into scale times the gradient of the product q . k.
  void gradients(index_t b, const QueryRow<A>& row, index_t key, index_t low, index_t high, A max, A inverse, A delta,
                 A* probs, A* ds, A* dmask) const {
    constexpr A lowest = -__builtin_huge_val();
    A keep[kKeyBlock];
    bool drops = p.dropout > 0;
    if (drops) {
      std::fill_n(keep, kKeyBlock, A{});
      score.drop(row, key + low, std::min(high, p.key_len - key) - low, keep + low);
    }
    for (index_t j = low; j < high; j += L) {
      V s = load(probs + j) * score.query_scale(), capped{}, dp = load(ds + j);
      bool ready = score.ready(row, key + j);
      if (!ready) s = score(s, row, key + j, &capped);
      V e = power(s - max) * inverse, factor = drops ? load(keep + j) : splat(A(1));
      V d = e * (dp * factor - delta);
      if (!ready) d = s == lowest ? V{} : d;
      if (dmask) add_mask_gradient(b, row, key + j, d, dmask);
      if (p.softcap != 0) d = d * (1 - capped * capped);
      store(probs + j, e * factor);
      store(ds + j, d * A(p.scale));
    }
  }

  void add_mask_gradient(index_t b, const QueryRow<A>& row, index_t j, V d, A* dmask) const {
    const index_t* s = p.dmask_strides;
    A* to = dmask + b * s[0] + row.head * s[1] + row.i * s[2] + j * s[3];
    int n = int(std::min<index_t>(L, p.key_len - j));
    if (n <= 0) return;  // a panel may end registers past the keys
    if (s[3] == 1) store_n(to, load_n(to, n) + d, n);
    else
      for (int i = 0; i < n; ++i) to[i * s[3]] += d[i];
  }

  // Rows of dk and dv of [key, key + kKeyBlock): 0 past the sequence's keys.
  void store_keys(index_t b, index_t kv_head, index_t key, index_t count, const Space& x) const {
    auto dk = rows_of(static_cast<T*>(p.dk), p.dk_strides, p.cu_k, b, kv_head) + key * p.dk_strides.row;
    auto dv = rows_of(static_cast<T*>(p.dv), p.dv_strides, p.cu_k, b, kv_head) + key * p.dv_strides.row;
    index_t end = p.cu_k ? std::max<index_t>(count, 0) : std::min<index_t>(kKeyBlock, p.key_len - key);
    for (index_t j = 0; j < end; ++j) {
      store_row(dk + j * p.dk_strides.row, j < count ? x.dk + j * Dp : nullptr, D);
      store_row(dv + j * p.dv_strides.row, j < count ? x.dv + j * Dvp : nullptr, Dv);
    }
  }
  void store_queries(index_t b, index_t kv_head, const A* dq, index_t width) const {
    index_t queries = p.queries(b);
    for (index_t g = 0; g < G; ++g) {
      T* to = rows_of(static_cast<T*>(p.dq), p.dq_strides, p.cu_q, b, kv_head * G + g);
      for (index_t i = 0; i < (p.cu_q ? queries : p.query_len); ++i)
        store_row(to + i * p.dq_strides.row, i < queries ? dq + (g * queries + i) * width : nullptr, D);
    }
  }
  static void store_row(T* to, const A* from, index_t width) {
    for (index_t d = 0; d < width; d += L) {
      int n = int(std::min<index_t>(L, width - d));
      store_n(to + d, from ? load_n(from + d, n) : V{}, n);
    }
  }

  void join(index_t pair) const {
    index_t b = pair / p.kv_heads, rows = G * p.queries(b);
    A* sum = partial_dq + pair * stripes * R * D;
    for (index_t s = 1; s < stripes; ++s)
      for (index_t e = 0; e < rows * D; ++e) sum[e] += sum[s * R * D + e];
    store_queries(b, pair % p.kv_heads, sum, D);
  }

  void sink_gradient(index_t b, index_t kv_head, const Space& x) const {
    index_t queries = p.queries(b);
    for (index_t g = 0; g < G; ++g) {
      index_t head = kv_head * G + g;
      A sink = static_cast<const A*>(p.sinks)[head] * kLogBase<A>, sum = 0;
      for (index_t r = g * queries; r < (g + 1) * queries; ++r)
        sum -= power(splat(sink - x.max[r]))[0] * x.inverse[r] * x.delta[r];
      partial_sinks[b * p.heads + head] = sum;
    }
  }

  const AttentionBackward& p;
  Score<T> score;
  index_t G, D, Dv, Dp, Dvp, R, stripe = 0, stripes = 1;
  Space* spaces = nullptr;
  A *partial_dq = nullptr, *partial_sinks = nullptr, *partial_masks = nullptr;
};

}  // namespace

void attention_backward(const AttentionBackward& p) {
  for_type(p.dtype, [&]<class T>() {
    if constexpr (kTiles && std::is_same_v<T, bf16>)
      if (p.key_len >= kTilePanel && p.group() * p.query_len >= kTilePanel && p.head_dim >= kTileRows)
        return BackwardAttention<T, TileProducts>(p).run();
    BackwardAttention<T, PanelProducts<T>>(p).run();
  });
}

}  // namespace seqkern::SEQKERN_ISA
