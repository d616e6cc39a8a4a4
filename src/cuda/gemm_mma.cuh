// C [m, n] = sum over k of a(i, k) b(j, k) on tensor cores, for operands of bfloat16 or float16 (gemm.cuh: the rest).
//
// A block computes 128 x 128 or 128 x 64 sums; tiles 32 deep travel through a ring in shared memory in the background.
// An operand is a set of lines in memory, of k (kDepthFirst) or of i at one k, any of which may be missing: zeros.
// Every sum runs over k in order, wherever its tile lies, so results do not depend on m and n.
//
// The left operand may come in parts that add up to a float: rounded to T, the remainder rounded to T, and so on.
#pragma once
#include "cuda/gemm.cuh"

namespace seqkern::cuda {

template <class T>
inline constexpr bool kHasMma = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;

// The next part is kept this much larger: float16's range is short.
template <class T>
inline constexpr float kPartScale = std::is_same_v<T, f16> ? 2048.0f : 1.0f;
// Parts that keep what is cut off below what a float sum of `depth` terms may lose anyway, depth * 2^-24; the cut of
// a single part is random, so it averages out.
constexpr int parts_for(index_t depth) { return depth >= 2048 ? 1 : depth >= 64 ? 2 : 3; }

template <class T>
SEQKERN_INLINE void split(float v, int parts, T* to, index_t stride) {
  for (int p = 0; p < parts; ++p) {
    store(to + p * stride, v);
    float rest = v - load(to + p * stride);
    v = abs(rest) <= 3e38f ? rest * kPartScale<T> : 0.0f;
  }
}
template <class T>
__global__ void split_kernel(index_t count, int parts, const float* from, T* to, index_t stride) {
  index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t e = index_t(blockIdx.x) * blockDim.x + threadIdx.x; e < count; e += step)
    split(from[e], parts, to + e, stride);
}
// to [parts, stride]: the parts of from [count].
template <class T>
void split(index_t count, int parts, const float* from, T* to, index_t stride, cudaStream_t stream) {
  index_t blocks = ceil_div(count, 256);
  Launch l{dim3(unsigned(blocks < 65536 ? blocks : 65536)), dim3(256)};
  l.stream = stream;
  if (blocks) launch(l, split_kernel<T>, count, parts, from, to, stride);
}

// A matrix as it lies in memory, in parts `part` apart.
template <class T, bool kDepthFirst_>
struct Lines {
  using type = T;
  static constexpr bool kDepthFirst = kDepthFirst_;
  const T* data;
  index_t stride, part = 0;
  SEQKERN_INLINE const T* line(index_t l, int p) const { return data + p * part + l * stride; }
  bool aligned() const { return (std::uintptr_t(data) | std::uintptr_t(2 * (stride | part))) % 16 == 0; }
};

inline constexpr int kMmaTile = 128, kMmaDepth = 32, kMmaStages = 4;

// kCount x 32 values of an operand in shared memory, in pieces of 16 bytes placed so that eight of them which a matrix
// is loaded from lie in different banks.
template <class T, int kCount, bool kDepthFirst>
struct GemmTile {
  static constexpr int kLines = kDepthFirst ? kCount : kMmaDepth, kPieces = (kDepthFirst ? kMmaDepth : kCount) / 8;
  T* data;

  SEQKERN_INLINE T* piece(int line, int c) const {
    return data + (line * kPieces + (c ^ (kDepthFirst ? line / 2 % 4 : line % 8))) * 8;
  }
  // The left factor [16, 16] of rows from i on, and the right factors [16, 8] of columns j and j + 8, at depth k.
  SEQKERN_INLINE void left(std::uint32_t (&a)[4], int i, int k) const {
    int lane = lane_id();
    if constexpr (kDepthFirst) load_matrices(a, piece(i + lane % 16, k / 8 + lane / 16));
    else load_matrices<true>(a, piece(k + lane / 16 * 8 + lane % 8, i / 8 + lane / 8 % 2));
  }
  SEQKERN_INLINE void right(std::uint32_t (&b)[4], int j, int k) const {
    int lane = lane_id();
    if constexpr (kDepthFirst) load_matrices(b, piece(j + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    else load_matrices<true>(b, piece(k + lane % 16, j / 8 + lane / 16));
  }
};

// The pieces of an operand that a thread brings to every tile: all of one column of pieces, lines apart.
template <class Operand, int kCount>
struct GemmStream {
  using T = typename Operand::type;
  using Tile = GemmTile<T, kCount, Operand::kDepthFirst>;
  static constexpr bool kDepthFirst = Operand::kDepthFirst;
  static constexpr int kEach = Tile::kLines * Tile::kPieces / kGemmThreads, kApart = kGemmThreads / Tile::kPieces;
  static_assert(kApart % 8 == 0);  // pieces of one column are placed alike

  const Operand& operand;
  index_t line0, lines, along, width;  // of the first piece at depth 0
  int place;
  bool aligned;
  const T* from[kEach];

  SEQKERN_INLINE GemmStream(const Operand& o, bool whole, index_t first, index_t count, index_t depth)
      : operand(o), lines(kDepthFirst ? count : depth), width(kDepthFirst ? depth : count), aligned(whole) {
    int l = int(threadIdx.x) / Tile::kPieces, c = int(threadIdx.x) % Tile::kPieces;
    place = int(Tile{nullptr}.piece(l, c) - static_cast<T*>(nullptr));
    line0 = (kDepthFirst ? first : 0) + l, along = (kDepthFirst ? 0 : first) + c * 8;
  }

  SEQKERN_INLINE void start(int part) {
    if constexpr (kDepthFirst) {
      SEQKERN_UNROLL
      for (int p = 0; p < kEach; ++p)
        from[p] = line0 + p * kApart < lines ? operand.line(line0 + p * kApart, part) + along : nullptr;
    }
  }
  SEQKERN_INLINE void fetch(T* stage, index_t k, int part) const {
    SEQKERN_UNROLL
    for (int p = 0; p < kEach; ++p) {
      index_t line = line0 + k + p * kApart, left = width - along - (kDepthFirst ? k : 0);
      const T* source = nullptr;
      if constexpr (kDepthFirst) source = left > 0 && from[p] ? from[p] + k : nullptr;
      else if (line < lines && left > 0) source = operand.line(line, part);
      if (!kDepthFirst && source) source += along;
      T* to = stage + place + p * kApart * Tile::kPieces * 8;
      if (aligned) copy_async<16>(to, source ? source : operand.data, source);
      else
        for (int i = 0; i < 8; ++i) to[i] = source && i < left ? source[i] : T{};
    }
  }
};

constexpr std::size_t mma_stage_bytes(int columns) { return (kMmaTile + columns) * kMmaDepth * 2u; }
// Whether the device has the shared memory.
template <class T>
bool mma_fits() {
  if constexpr (!kHasMma<T>) return false;
  else
    return std::size_t(limits(reinterpret_cast<const void*>(split_kernel<T>)).max_shared) >=
           kMmaStages * mma_stage_bytes(kMmaTile);
}

struct GemmShape {
  index_t m, n, depth;
  int parts;
  bool left_aligned, right_aligned;
};

template <int kColumns, class Left, class Right, class Out>
__global__ void __launch_bounds__(kGemmThreads, 2) gemm_mma_kernel(GemmShape s, Left left, Right right, Out out) {
  using T = typename Left::type;
  constexpr int kDown = kColumns / 32, kRows = kColumns / 2 / 16;  // warps across; left factors a warp
  constexpr int kStage = (kMmaTile + kColumns) * kMmaDepth;
  SEQKERN_DYNAMIC_SHARED(shared);
  auto stages = reinterpret_cast<T*>(shared);
  auto a = [&](int i) { return GemmTile<T, kMmaTile, Left::kDepthFirst>{stages + i % kMmaStages * kStage}; };
  auto b = [&](int i) {
    return GemmTile<T, kColumns, Right::kDepthFirst>{stages + i % kMmaStages * kStage + kMmaTile * kMmaDepth};
  };
  index_t across = ceil_div(s.n, kColumns), i0 = blockIdx.x / across * kMmaTile, j0 = blockIdx.x % across * kColumns;
  GemmStream<Left, kMmaTile> of_left(left, s.left_aligned, i0, s.m, s.depth);
  GemmStream<Right, kColumns> of_right(right, s.right_aligned, j0, s.n, s.depth);
  int steps = int(ceil_div(s.depth, kMmaDepth)), all = steps * s.parts, part = s.parts;
  index_t k = s.depth;
  auto fetch = [&](int i) {
    if (i < all) {
      if (k >= s.depth) k = 0, of_left.start(--part), of_right.start(0);
      of_left.fetch(a(i).data, k, part);
      of_right.fetch(b(i).data, k, 0);
      k += kMmaDepth;
    }
    copy_commit();
  };
  int row = warp_id() / kDown * kRows * 16, column = warp_id() % kDown * 32;
  float sum[kRows][4][4] = {};
  for (int i = 0; i < kMmaStages - 1; ++i) fetch(i);
  for (int i = 0, next = steps; i < all; ++i) {
    if (i == next) {
      next += steps;
      for (auto& r : sum)
        for (auto& c : r)
          for (float& v : c) v *= 1 / kPartScale<T>;
    }
    copy_wait<kMmaStages - 2>();
    sync_block();
    fetch(i + kMmaStages - 1);
    SEQKERN_UNROLL
    for (int d = 0; d < kMmaDepth; d += 16) {
      std::uint32_t u[kRows][4], v[2][4];
      SEQKERN_UNROLL
      for (int r = 0; r < kRows; ++r) a(i).left(u[r], row + r * 16, d);
      SEQKERN_UNROLL
      for (int c = 0; c < 2; ++c) b(i).right(v[c], column + c * 16, d);
      SEQKERN_UNROLL
      for (int r = 0; r < kRows; ++r) SEQKERN_UNROLL
      for (int c = 0; c < 4; ++c) multiply<T>(sum[r][c], u[r], {v[c / 2][c % 2 * 2], v[c / 2][c % 2 * 2 + 1]});
    }
  }
  copy_wait<0>();
  SEQKERN_UNROLL
  for (int r = 0; r < kRows; ++r) SEQKERN_UNROLL
  for (int c = 0; c < 4; ++c) SEQKERN_UNROLL
  for (int e = 0; e < 4; ++e) {
    index_t i = i0 + row + r * 16 + lane_id() / 4 + e / 2 * 8, j = j0 + column + c * 8 + lane_id() % 4 * 2 + e % 2;
    if (i < s.m && j < s.n) out(i, j, sum[r][c][e]);
  }
}

template <class Left, class Right, class Out>
void gemm_mma(index_t m, index_t n, index_t depth, Left left, Right right, Out out, cudaStream_t stream,
              int parts = 1) {
  auto whole = [](auto& operand, index_t along) { return operand.aligned() && along % 8 == 0; };
  index_t left_width = Left::kDepthFirst ? depth : m, right_width = Right::kDepthFirst ? depth : n;
  GemmShape s{m, n, depth, parts, whole(left, left_width), whole(right, right_width)};
  auto run = [&](auto columns) {
    constexpr int kColumns = decltype(columns)::value;
    index_t tiles = ceil_div(m, kMmaTile) * ceil_div(n, kColumns);
    if (!tiles) return;
    if (tiles > 0x7fffffff || depth > 0x7fffffff) throw DeviceError("a matrix product of more than 2^31 tiles");
    Launch l{dim3(unsigned(tiles)), dim3(kGemmThreads), kMmaStages * mma_stage_bytes(kColumns)};
    l.stream = stream;
    launch(l, gemm_mma_kernel<kColumns, Left, Right, Out>, s, left, right, out);
  };
  // wide tiles once they fill a large device
  if (ceil_div(m, kMmaTile) * ceil_div(n, 128) >= 128) run(std::integral_constant<int, 128>{});
  else run(std::integral_constant<int, 64>{});
}

}  // namespace seqkern::cuda
