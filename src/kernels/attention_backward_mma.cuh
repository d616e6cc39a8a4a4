// Attention backward on tensor cores (compute capability 8.0 on): bfloat16 and float16, widths up to 128.
//
// A block owns 128 rows of one side, sixteen a warp, and walks over the other side's, 64 at a time, which travel
// through shared memory in the background: keys over all rows of queries that see them (dk, dv), rows of queries over
// their keys (dq). What a block owns stands on the left of every product,
//
//   S = own walked',  dP = own walked',   sums += dropout(P) walked,  sums += dS walked
//
// so that P and dS, rounded to the storage type, are the next left factors without leaving their registers.
//
// A masked position has weight 0, and 0 times a NaN is NaN: a warp whose sums came out so says it in `spoiled`, and the
// kernels in plain arithmetic, which leave masked products out, do its rows again.
#pragma once
#include "attention_backward_wgmma.cuh"
#include "attention_gradient_products.cuh"

namespace seqkern::cuda {

template <class T, int kWidth, Between kBetween>
SEQKERN_INLINE void gradients_of_keys(const Gradients<T>& a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  using Products = WarpProducts<T, kWidth>;
  constexpr bool kFull = kBetween == Between::anything;
  const AttentionBackward& p = a.p;
  GradientMemory<T, kWidth, kBetween> memory{reinterpret_cast<T*>(shared)};
  int pair, tile;  // causal: the longest first
  a.keys_order.find(int(blockIdx.x), pair, tile);
  int key = tile * kOwnRows, b = pair / int(p.kv_heads), kv_head = pair % int(p.kv_heads);
  Interval seeing = rows_that_see(p, b, key, kOwnRows);
  int first = int(seeing.low) / kWalkRows * kWalkRows, high = int(seeing.high), i = first;
  int head = kv_head * int(p.group()), end = first < high ? head + int(p.group()) : head;

  auto fetch = [&](int stage) {
    memory.walked(0, stage).fetch(a.queries(p.q, p.q_strides, b, head, i), int(p.head_dim));
    memory.walked(1, stage).fetch(a.queries(p.dout, p.out_strides, b, head, i), int(p.value_dim));
    if constexpr (kBetween == Between::bias)
      memory.template mask<kOwnRows>(stage).fetch(a.mask(b, head, i, key), int(p.key_len) - key);
    int r = int(threadIdx.x);
    bool there = i + r < p.query_len;
    if (r < kWalkRows) copy_async<16>(memory.terms(stage) + r, a.terms_of(b, head) + (there ? i + r : 0), there);
    copy_commit();
  };
  memory.own(0).fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
  memory.own(1).fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
  if (head < end) fetch(0);

  constexpr int kUnit = Products::kUnit;
  int lane = lane_id(), mine = key + warp_id() * 16 + lane / 4, unit = key + warp_id() * 16 / kUnit * kUnit;
  typename Products::Sums dk = {}, dv = {};
  for (int stage = 0, next; head < end; stage = next) {
    next = 1 - stage;
    copy_wait<0>();
    sync_block();
    if (kFull) {
      describe_rows(a.score, b, head, i, kWalkRows, p.query_len, int(threadIdx.x), memory.full());
      sync_block();
    }
    i += kWalkRows;
    if (i >= high) i = first, ++head;
    auto fetch_next = [&] {
      if (head < end) fetch(next);
    };

    const RowTerms* row = memory.terms(stage);
    const RowTerms &one = row[lane], &other = row[lane + 32];
    if (!ballot(one.sees_any(unit, kUnit) || other.sees_any(unit, kUnit))) {
      fetch_next();
      continue;
    }
    bool whole = ballot(one.sees_all(unit, kUnit) && other.sees_all(unit, kUnit)) == kAllLanes;
    auto powers = [&]<int kTiles>(Tile<kTiles>& s, int from) {
      auto bias_at = [&](int n) {
        int r = (from + n + lane / 16) * 8 + lane % 8;
        return memory.template mask<kOwnRows>(stage).piece(r, warp_id() * 2 + lane / 8 % 2);
      };
      auto run = [&]<bool kWhole>() {
        a.template for_elements<kBetween, true, kTiles>(bias_at, [&](int n, int half, int e, float bias) {
          float& x = s[n][half * 2 + e];
          x = a.template power_of<kBetween, kWhole>(x, row[(from + n) * 8 + lane % 4 * 2 + e], mine + half * 8, bias);
        });
      };
      if constexpr (kFull) return;  // slopes does it all
      else if (whole) run.template operator()<true>();
      else run.template operator()<false>();
    };
    auto slopes = [&]<int kTiles>(Tile<kTiles>& s, Tile<kTiles>& dp, int from) {
      auto run = [&]<bool kWhole>() {
        for_tile<kTiles>([&](int n, int e) {
          int r = (from + n) * 8 + lane % 4 * 2 + e % 2;
          if constexpr (kFull) a.weigh(s[n][e], dp[n][e], row[r], memory.full()[r], mine + e / 2 * 8);
          else dp[n][e] = a.template slope_of<kWhole>(s[n][e], dp[n][e], row[r]);
        });
      };
      run.template operator()<false>();
    };
    Products::dkv(memory.own(0), memory.own(1), memory.walked(0, stage), memory.walked(1, stage), fetch_next, powers,
                  slopes, dk, dv);
  }
  copy_wait<0>();
  index_t rows = p.cu_k ? p.keys(b) : p.key_len;
  auto to = [&](void* data, const AttentionStrides& s) {
    return [&, data](int r) {
      return key + r < rows ? row_of(static_cast<T*>(data), s, p.cu_k, b, kv_head, key + r) : nullptr;
    };
  };
  bool wrong = store_rows<T, kWidth>(dk, float(p.scale), p.head_dim, to(p.dk, p.dk_strides));
  wrong = store_rows<T, kWidth>(dv, 1, p.value_dim, to(p.dv, p.dv_strides)) || wrong;
  unsigned spoiled = ballot(wrong);
  int at = (pair * a.keys_order.tiles + tile) * kGradientWarps + warp_id();
  if (a.keys_spoiled && lane == 0) a.keys_spoiled[at] = spoiled != 0;
}

template <class T, int kWidth, Between kBetween>
SEQKERN_INLINE void gradients_of_rows(const Gradients<T>& a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  using Products = WarpProducts<T, kWidth>;
  const AttentionBackward& p = a.p;
  GradientMemory<T, kWidth, kBetween> memory{reinterpret_cast<T*>(shared)};
  int which, tile, tiles = a.rows_order.tiles;
  a.rows_order.find(int(blockIdx.x), which, tile);
  tile = tiles - 1 - tile;  // causal: the longest first
  int b = which / int(p.heads), head = which % int(p.heads), first = tile * kOwnRows;
  Interval seen = keys_they_see(p, b, first, kOwnRows);
  int key = int(seen.low) / kWalkRows * kWalkRows, high = int(seen.high);
  auto fetch = [&](int stage) {
    memory.walked(0, stage).fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
    memory.walked(1, stage).fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
    if constexpr (kBetween == Between::bias)
      memory.template mask<kWalkRows>(stage).fetch(a.mask(b, head, first, key), int(p.key_len) - key);
    copy_commit();
  };
  if (key < high) {
    memory.own(0).fetch(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim));
    memory.own(1).fetch(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim));
    fetch(0);
  }
  int lane = lane_id(), mine = first + warp_id() * 16 + lane / 4;
  RowTerms row[2];
  QueryRow<float> full[2];
  float* dmask[2] = {};
  for (int half = 0; half < 2; ++half) {
    int i = mine + half * 8;
    a.template describe<kBetween>(b, head, i, row[half], full[half]);
    if (a.stores_dmask && i < p.query_len)
      dmask[half] = static_cast<float*>(p.dmask) + ((index_t(b) * p.heads + head) * p.query_len + i) * p.key_len;
  }
  constexpr int kUnit = Products::kUnit;
  Interval unit = keys_they_see(p, b, first + warp_id() * 16 / kUnit * kUnit, kUnit);
  typename Products::Sums dq = {};
  for (int stage = 0, next; key < high; stage = next) {
    next = 1 - stage;
    copy_wait<0>();
    sync_block();
    int at = key;
    key += kWalkRows;
    auto fetch_next = [&] {
      if (key < high) fetch(next);
    };
    if (unit.high <= at || unit.low >= at + kWalkRows) {
      fetch_next();
      continue;
    }
    bool whole = ballot(row[0].sees_all(at, kWalkRows) && row[1].sees_all(at, kWalkRows)) == kAllLanes;
    at += lane % 4 * 2;
    auto powers = [&]<int kTiles>(Tile<kTiles>& s, int from) {
      auto bias_at = [&](int n) {
        return memory.template mask<kWalkRows>(stage).piece(warp_id() * 16 + lane % 16, from + n + lane / 16);
      };
      auto run = [&]<bool kWhole>() {
        a.template for_elements<kBetween, false, kTiles>(bias_at, [&](int n, int half, int e, float bias) {
          float& x = s[n][half * 2 + e];
          x = a.template power_of<kBetween, kWhole>(x, row[half], at + (from + n) * 8 + e, bias);
        });
      };
      if constexpr (kBetween == Between::anything) return;  // slopes does it all
      else if (whole) run.template operator()<true>();
      else run.template operator()<false>();
    };
    auto slopes = [&]<int kTiles>(Tile<kTiles>& s, Tile<kTiles>& dp, int from) {
      auto run = [&]<bool kWhole>() {
        for_tile<kTiles>([&](int n, int e) {
          int j = at + (from + n) * 8 + e % 2;
          float ds;
          if constexpr (kBetween == Between::anything) ds = a.weigh(s[n][e], dp[n][e], row[e / 2], full[e / 2], j);
          else dp[n][e] = ds = a.template slope_of<kWhole>(s[n][e], dp[n][e], row[e / 2]);
          if (kBetween != Between::interval && dmask[e / 2] && j < p.key_len) dmask[e / 2][j] = ds;
        });
      };
      if (kBetween == Between::interval && whole) run.template operator()<true>();
      else run.template operator()<false>();
    };
    Products::dq(memory.own(0), memory.own(1), memory.walked(0, stage), memory.walked(1, stage), fetch_next, powers,
                 slopes, dq);
  }
  copy_wait<0>();
  store_dq<T, kWidth>(a, b, head, tile, dq);
}

template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dkv_mma_kernel(const __grid_constant__ Gradients<T> a) {
  gradients_of_keys<T, kWidth, kBetween>(a);
}
template <class T, int kWidth, Between kBetween>
__global__ void __launch_bounds__(32 * kGradientWarps) dq_mma_kernel(const __grid_constant__ Gradients<T> a) {
  gradients_of_rows<T, kWidth, kBetween>(a);
}

// Tile (b, head, 128 rows, 64 keys) of dmask, summed over the sequences and heads it was broadcast to.
template <class T, int kWidth, Between kBetween, class Products>
SEQKERN_INLINE void gradients_of_mask(const Gradients<T>& a) {
  SEQKERN_DYNAMIC_SHARED(shared);
  const AttentionBackward& p = a.p;
  const index_t* step = p.dmask_strides;
  GradientMemory<T, kWidth, kBetween> memory{reinterpret_cast<T*>(shared)};
  auto q = memory.own(0), dout = memory.own(1);
  auto k = memory.walked(0, 0), v = memory.walked(1, 0);
  Sheets<T, kWalkRows, kOwnRows> mask{memory.walked(0, 1).data};
  int across = int(ceil_div(p.key_len, kWalkRows)), down = int(ceil_div(p.query_len, kOwnRows)), rest = int(blockIdx.x);
  int key = rest % across * kWalkRows, first = rest / across % down * kOwnRows;
  rest /= across * down;
  int heads = step[1] ? 1 : int(p.heads), batch = step[0] ? 1 : int(p.batch);
  int own_heads = int(p.heads) / heads, head0 = rest % own_heads, b0 = rest / own_heads;

  int lane = lane_id(), mine = first + warp_id() * 16 + lane / 4, from = key + lane % 4 * 2;
  float sums[kWalkRows / 8][4] = {};
  for (int at = 0; at < batch * heads; ++at) {
    int b = b0 + at / heads, head = head0 + at % heads;
    Interval seen = keys_they_see(p, b, first, kOwnRows);
    if (seen.high <= key || seen.low >= key + kWalkRows) continue;
    sync_block();
    q.fetch(a.queries(p.q, p.q_strides, b, head, first), int(p.head_dim));
    k.fetch(a.keys(p.k, p.k_strides, b, head, key), int(p.head_dim));
    if constexpr (kBetween == Between::bias) mask.fetch(a.mask(b, head, first, key), int(p.key_len) - key);
    dout.fetch(a.queries(p.dout, p.out_strides, b, head, first), int(p.value_dim));
    v.fetch(a.keys(p.v, p.v_strides, b, head, key), int(p.value_dim));
    copy_commit();
    RowTerms row[2];
    QueryRow<float> full[2];
    for (int half = 0; half < 2; ++half)
      a.template describe<kBetween>(b, head, mine + half * 8, row[half], full[half]);
    copy_wait<0>();
    Products::fence();
    sync_block();
    Products::template both<4>(q, dout, k, v, [&]<int kTiles>(Tile<kTiles>& s, Tile<kTiles>& dp, int part) {
      auto bias_at = [&](int n) { return mask.piece(warp_id() * 16 + lane % 16, part + n + lane / 16); };
      a.template for_elements<kBetween, false, kTiles>(bias_at, [&](int n, int half, int e, float bias) {
        int c = half * 2 + e, j = from + (part + n) * 8 + e;
        float &x = s[n][c], &ds = sums[part + n][c];
        if constexpr (kBetween == Between::anything) ds += a.weigh(x, dp[n][c], row[half], full[half], j);
        else x = a.template power_of<kBetween, false>(x, row[half], j, bias),
             ds += a.template slope_of<false>(x, dp[n][c], row[half]);
      });
    });
  }
  auto out = static_cast<float*>(p.dmask) + b0 * step[0] + head0 * step[1];
  SEQKERN_UNROLL
  for (int n = 0; n < kWalkRows / 8; ++n) SEQKERN_UNROLL
  for (int c = 0; c < 4; ++c) {
    int i = mine + c / 2 * 8, j = from + n * 8 + c % 2;
    if (i < p.query_len && j < p.key_len) out[i * p.key_len + j] = sums[n][c];
  }
}

template <class T, int kWidth, Between kBetween, class Products>
__global__ void __launch_bounds__(32 * kGradientWarps, 2) dmask_mma_kernel(const __grid_constant__ Gradients<T> a) {
  if constexpr (!Products::kHopper || SEQKERN_HOPPER) gradients_of_mask<T, kWidth, kBetween, Products>(a);
}

// Whether the kernels can do this call: its types, widths, and rows that start at multiples of 16 bytes.
inline bool fits_mma(const AttentionBackward& p) {
  if (p.dtype != DType::bf16 && p.dtype != DType::f16) return false;
  auto whole = [](const void* data, const AttentionStrides& s) {
    return starts_rows_whole(data, s.batch | s.head | s.row, s.row);
  };
  auto fits = [](index_t width) { return width % 8 == 0 && width > 0 && width <= 128; };
  return fits(p.head_dim) && fits(p.value_dim) && whole(p.q, p.q_strides) && whole(p.k, p.k_strides) &&
         whole(p.v, p.v_strides) && whole(p.dout, p.out_strides);
}
inline BlockOrder order_of_keys(const AttentionInputs& p, index_t pairs) {
  return {pairs, p.key_len, p.causal ? p.group() * p.query_len * (p.head_dim + p.value_dim) : 0};
}
inline BlockOrder order_of_rows(const AttentionInputs& p, index_t pairs) {
  return {pairs * p.group(), p.query_len, p.causal ? p.key_len * (p.head_dim + p.value_dim) : 0};
}

// Which gradients tensor cores gave.
struct Given {
  bool inputs = false, mask = false;
};
template <class T>
bool launch_over(void (*kernel)(Gradients<T>), index_t blocks, std::size_t bytes, const Gradients<T>& a,
                 cudaStream_t stream, int warps = kGradientWarps) {
  Launch l{dim3(unsigned(blocks)), dim3(unsigned(32 * warps)), bytes};
  l.stream = stream;
  if (bytes > std::size_t(limits(reinterpret_cast<const void*>(kernel)).max_shared)) return false;
  if (blocks) launch(l, kernel, a);
  return true;
}
template <class T, int kWidth, Between kBetween>
bool launch_inputs(const Gradients<T>& a, cudaStream_t stream) {
  constexpr std::size_t kBytes = GradientMemory<T, kWidth, kBetween>::kBytes;
  return launch_over(dkv_mma_kernel<T, kWidth, kBetween>, a.keys_order.blocks(), kBytes, a, stream) &&
         launch_over(dq_mma_kernel<T, kWidth, kBetween>, a.rows_order.blocks(), kBytes, a, stream);
}
// How warpgroups go about a width: what was the fastest on an H200; with a mask, what fits beside it.
template <class T, int kWidth, Between kBetween>
using KeysPlan = GroupPlan<T, kWidth, 64, kWidth == 64, 3, kBetween>;
template <class T, int kWidth, Between kBetween, bool kAlone = kBetween == Between::interval>
using RowsPlan =
    GroupPlan<T, kWidth, kWidth == 64 && kAlone ? 128 : 64, false, kWidth == 128 && kAlone ? 4 : 3, kBetween>;
template <class T, int kWidth, Between kBetween>
bool launch_groups(const Gradients<T>& a, cudaStream_t stream) {
  using Keys = KeysPlan<T, kWidth, kBetween>;
  using Rows = RowsPlan<T, kWidth, kBetween>;
  auto dkv = dkv_wgmma_kernel<T, Keys>;
  if (!limits(reinterpret_cast<const void*>(dkv)).has_body) return false;
  return launch_over(dkv, a.keys_order.blocks(), Keys::kKeysBytes, a, stream, kGroupWarps) &&
         launch_over(dq_wgmma_kernel<T, Rows>, a.rows_order.blocks(), Rows::kRowsBytes, a, stream, kGroupWarps);
}
template <class T, int kWidth, Between kBetween>
Given launch_gradient(Gradients<T>& a, cudaStream_t stream) {
  const AttentionBackward& p = a.p;
  const index_t sizes[4] = {p.batch, p.heads, p.query_len, p.key_len}, *step = p.dmask_strides;
  auto real = [&](int i) { return step[i] || sizes[i] == 1; };
  bool tiled = p.dmask && p.dmask_count && real(2) && real(3);
  a.stores_dmask = tiled && real(0) && real(1);
  Given given{false, a.stores_dmask};
  if constexpr (kBetween != Between::anything) given.inputs = launch_groups<T, kWidth, kBetween>(a, stream);
  if (!given.inputs) given.inputs = launch_inputs<T, kWidth, kBetween>(a, stream);
  if (!given.inputs) return {};
  if constexpr (kBetween != Between::interval)
    if (tiled && !a.stores_dmask) {
      index_t blocks = ceil_div(p.query_len, kOwnRows) * ceil_div(p.key_len, kWalkRows);
      blocks *= (step[0] ? p.batch : 1) * (step[1] ? p.heads : 1);
      std::size_t bytes = (2 * Own<T, kWidth>::kSize + 2 * Walked<T, kWidth>::kSize + kOwnRows * kWalkRows) * sizeof(T);
      auto kernel = dmask_mma_kernel<T, kWidth, kBetween, WarpProducts<T, kWidth>>;
      if constexpr (kBetween == Between::bias) {
        auto groups = dmask_mma_kernel<T, kWidth, kBetween, GroupProducts<T, kWidth>>;
        if (limits(reinterpret_cast<const void*>(groups)).has_body) kernel = groups;
      }
      given.mask = launch_over(kernel, blocks, bytes, a, stream);
    }
  return given;
}
// Nothing where the device has too little shared memory.
template <class T>
Given launch_gradient(Gradients<T>& a, cudaStream_t stream) {
  auto of_width = [&]<int kWidth>() {
    switch (between(a.p)) {
      case Between::interval: return launch_gradient<T, kWidth, Between::interval>(a, stream);
      case Between::bias: return launch_gradient<T, kWidth, Between::bias>(a, stream);
      default: return launch_gradient<T, kWidth, Between::anything>(a, stream);
    }
  };
  bool narrow = a.p.head_dim <= 64 && a.p.value_dim <= 64;
  return narrow ? of_width.template operator()<64>() : of_width.template operator()<128>();
}

}  // namespace seqkern::cuda
