// Attention forward on any GPU (attention_tile.cuh): a block takes 32 query rows, those of all heads of a group side by
// side, and walks over the keys they see, softmax online. What fits tensor cores goes there first
// (attention_wgmma.cuh, attention_mma.cuh), few rows have kernels of their own (attention_decode.cuh), which alone read
// keys in pages.
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "attention_walk.cuh"
#include "attention_wgmma.cuh"
#include "cuda/types.cuh"
#include "seqkern/attention.h"

namespace seqkern::cuda {
namespace {

template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kBlockWarps, 2)
    attention_forward_kernel(const __grid_constant__ AttentionForward p, const __grid_constant__ Score<T> score,
                             const unsigned char* wanted) {
  using A = acc_t<T>;
  using Block = Team<A, kBlockWarps>;
  SEQKERN_SHARED(LeftRow<A>, left, Block::kLeft);
  SEQKERN_SHARED(LeftRow<A>, weights, Block::kLeft);
  SEQKERN_SHARED(A, right, kSide * kRightPitch);
  SEQKERN_SHARED(QueryRow<A>, rows, Block::kLeft);
  index_t all = p.group() * p.query_len, tiles = ceil_div(all, Block::kLeft);
  index_t pair = blockIdx.x / tiles, tile = tiles - 1 - blockIdx.x % tiles;  // causal: the longest first
  index_t b = pair / p.kv_heads, kv_head = pair % p.kv_heads;
  if (wanted) {  // a byte for every 16 rows, of which the mma kernel took 64 at a time
    const unsigned char* mine = wanted + pair * ceil_div(all, kMmaRows) * kMmaWarps + tile * (Block::kLeft / 16);
    if (!mine[0] && !mine[1]) return;
  }
  Block team(&left[0], &weights[0], &right[0]);
  describe_rows(score, b, kv_head * p.group(), tile * Block::kLeft, Block::kLeft, all, team.rank(), &rows[0]);
  sync_block();
  Interval seen = keys_seen(&rows[0], Block::kLeft);
  Walk<T, kColumns> walk{p, score, &rows[0], b, kv_head, index_t(blockIdx.y) * kColumns * kSide};
  SEQKERN_UNROLL
  for (int m = 0; m < kMine; ++m) walk.state[m].start(p, rows[team.first() + m]);
  for (index_t key = seen.low / kSide * kSide; key < seen.high; key += kSide) walk.step(team, key);
  walk.finish(team.first());
  if (p.probs && walk.column == 0) walk.write_probs(team);
}

template <class T>
void forward(const AttentionForward& p, void* workspace, cudaStream_t stream) {
  index_t tiles = ceil_div(p.group() * p.query_len, kMine * kBlockWarps);
  Score<T> score(p);
  const unsigned char* wanted = nullptr;
  if constexpr (sizeof(T) == 2)
    if (fits_mma(p)) {
      auto spoiled = masks(p) ? static_cast<unsigned char*>(workspace) : nullptr;
      bool narrow = p.head_dim <= 64 && p.value_dim <= 64;
      bool done = fits_wgmma(p) && (narrow ? launch_wgmma<T, 64>(p, spoiled, stream)
                                           : launch_wgmma<T, kMaxMmaWidth>(p, spoiled, stream));
      done = done || (narrow ? launch_mma<T, 64>(p, score, spoiled, stream)
                             : launch_mma<T, kMaxMmaWidth>(p, score, spoiled, stream));
      if (done && !spoiled) return;
      if (done) wanted = spoiled;
    }
  for_columns_of(p.value_dim, [&]<int kColumns>(unsigned blocks) {
    Launch l{dim3(unsigned(p.batch * p.kv_heads * tiles), blocks), dim3(32 * kBlockWarps)};
    l.stream = stream;
    launch(l, attention_forward_kernel<T, kColumns>, p, score, wanted);
  });
}

}  // namespace

std::size_t attention_forward_workspace(const AttentionForward& p) {
  if (!decodes(p)) return packed_bytes(p) + (fits_mma(side_by_side(p, nullptr)) && masks(p) ? mma_warps(p) : 0);
  return std::size_t(decode_partials(p) * (2 + p.value_dim)) * (p.dtype == DType::f64 ? 8 : 4);
}

void attention_forward(const AttentionForward& p, void* workspace, void* stream_) {
  if (!(p.batch && p.heads && p.query_len)) return;
  auto stream = static_cast<cudaStream_t>(stream_);
  for_type(p.dtype, [&]<class T>() {
    if (decodes(p)) return decode<T>(p, workspace, stream);
    AttentionForward packed = side_by_side(p, workspace);
    if (p.block_table) pack<T>(p, packed, stream);
    forward<T>(packed, static_cast<char*>(workspace) + packed_bytes(p), stream);
  });
}

}  // namespace seqkern::cuda
