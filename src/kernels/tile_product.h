// Products of fp32 or bf16 factors on the matrix unit, in bf16 parts with fp32 sums; one product alone also where only
// AVX512-BF16 is there, whose dot product of pairs does twice what FMA does.
//
//   a = a0 + a1 + a2,  b = b0 + b1 + b2,     a b = sum of ai bj over i + j < max(parts of a, parts of b)
//
// Each part is the bf16 nearest to what the parts before it left over: three hold all 24 bits of an fp32 value,
// two hold 16 and err by at most 2^-17, one errs by at most 2^-8. A bf16 value is one part and exact. For each
// product |a||b|:
//
//   factors         mode     parts  products  error
//   bf16 . bf16     any      1, 1      1      0
//   fp32 . bf16     medium   1, 1      1      2^-8
//                   high     2, 1      2      2^-17
//                   highest  3, 1      3      0
//   fp32 . fp32     medium   2, 1      2      2^-8: one product alone may err by 2^-7
//                   high     2, 2      3      2^-15 at worst, when a and b lie just above a power of two and all
//                                             roundings agree; 1.2 * 2^-18 root mean square, and independent of
//                                             term to term: below kManyTerms terms that is not enough, and
//                            3, 2      5      2^-17 is what runs
//                   highest                   by FMA: the six products of 3, 3 took 0.8 to 1.9 times as long on the
//                                             unit of a Sapphire Rapids core that others share
//
// Fewer than eight rows (recurrent layers, whose weights are packed once for all steps: four) for each product do not
// pay for packing. Nor, where the bound is that of fp32, do sums come here that are so short that the roundings of
// three products would show (kSomeTerms).
//
// The unit knows no subnormals, and a split infinity is not one: rows of A and columns of B with a value of 2^40
// or more, infinite or NaN (`wide`) are computed again by FMA, each on its own, whatever its neighbours hold. A
// part below 2^-126 counts as zero: an error of at most K 2^-126 (3 max|a| + 3 max|b| + 6).
//
// Packed: panels of 32 rows of A or columns of B, [k / 32][part][tile of 16], one KiB each. A tile of A is 16
// rows of 32 values, a tile of B 16 pairs of k by 16 columns. What is absent is 0.
#pragma once
#include <algorithm>
#include <type_traits>

#include "simd/tiles.h"

namespace seqkern::SEQKERN_ISA {

using Half = std::uint16_t;  // the bits of a bf16 value

inline constexpr index_t kTilePanel = 2 * kTileRows;
inline constexpr index_t kSomeTerms = 64, kManyTerms = 256;

// Parts of the two factors; none where the product is not for the matrix unit.
struct Parts {
  int a = 0, b = 0;
  explicit operator bool() const { return kTiles && a > 0; }
  int products() const {
    int n = 0, limit = a > b ? a : b;
    for (int i = 0; i < a; ++i) n += b < limit - i ? b : limit - i;
    return n;
  }
};

// Values that are bf16 as they are.
template <class S>
inline constexpr bool kOnePart = std::is_same_v<S, bf16> || std::is_same_v<S, std::int8_t>;

// By mode, number of rows and of terms alone; rows_each: rows that pay for one product.
template <class SA, class SB>
Parts parts_for(Precision mode, index_t rows, index_t depth, index_t rows_each) {
  if constexpr (!kTiles || std::is_same_v<SA, double>) {
    return {};
  } else {
    constexpr bool kExactA = kOnePart<SA>, kExactB = kOnePart<SB>;
    int n = mode == Precision::highest ? 3 : mode == Precision::high ? 2 : 1;
    Parts p{kExactA ? 1 : n, kExactB ? 1 : n};
    if constexpr (!kExactA && !kExactB) {
      if (mode == Precision::highest) return {};
      if (mode == Precision::medium) p.a = 2;
      if (mode == Precision::high && depth < kManyTerms) p.a = 3;
    }
    bool fp32_bound = mode == Precision::highest && !(kExactA && kExactB);
    if (!kTileRegisters && p.products() > 1) return {};
    if (depth < (fp32_bound ? kSomeTerms : kTileDepth) || rows < rows_each * p.products()) return {};
    return p;
  }
}

// Whether infinities and NaN pass through the unit as they should: a single product of what was given.
template <class SA, class SB>
inline constexpr bool kPlainTiles = std::is_same_v<SA, bf16> && std::is_same_v<SB, bf16>;

inline index_t tile_chunks(index_t depth) { return ceil_div(depth, kTileDepth); }
inline index_t panel_values(index_t depth, int parts) { return tile_chunks(depth) * parts * 2 * kTileValues; }

// ---- packing ----

// The next part of x and y, taken off them: values side by side (Along k), or y in the upper half of x's lane.
template <bool Along>
SEQKERN_INLINE VecU next_part(Vec<float>& x, Vec<float>& y) {
  VecU part = narrow_beside(x, y);
  Vec<float> part_x = widen_half<0>(part), part_y = widen_half<1>(part);
  x = x - part_x, y = y - part_y;
  if constexpr (Along) return part;
  else return bit_cast<VecU>(part_x) >> 16 | bit_cast<VecU>(part_y);
}

// The same with nothing left over; Exact: x and y are bf16 values.
template <bool Along, bool Exact>
SEQKERN_INLINE VecU last_part(Vec<float> x, Vec<float> y) {
  if constexpr (Along) return narrow_beside(x, y);
  else if constexpr (Exact) return bit_cast<VecU>(x) >> 16 | bit_cast<VecU>(y);
  else return next_part<Along>(x, y);
}

template <class S>
SEQKERN_INLINE Vec<float> load_upto(const S* p, index_t n) {
  constexpr int L = kLanes<float>;
  if constexpr (std::is_same_v<S, double>) return Vec<float>{};  // never asked for
  else return n >= L ? load(p) : n > 0 ? load_n(p, int(n)) : Vec<float>{};
}

// One square of lanes x lanes pairs: line q of it in every part, then (Turn) transposed, to `out` + q * 16 pairs.
template <bool Along, bool Turn, class S>
SEQKERN_INLINE void pack_square(const S* from, index_t stride, index_t k_stride, index_t count, index_t depth,
                                int parts, VecU* out) {
  constexpr int L = kLanes<float>, kLine = kTileRows / L;  // registers of a line
  constexpr index_t kPart = 2 * kTileRows * kLine;         // registers from one part to the next
  Vec<float> square[3][L];
  auto put = [&](int part, int q, VecU v) {
    if constexpr (Turn) square[part][q] = bit_cast<Vec<float>>(v);
    else std::memcpy(out + part * kPart + q * kLine, &v, sizeof v);
  };
  for (int q = 0; q < L; ++q) {
    Vec<float> x{}, y{};
    if constexpr (Along && std::is_same_v<S, bf16>) {  // as they lie
      const S* p = from + q * stride;
      put(0, q, q >= count || depth <= 0 ? VecU{} : depth >= 2 * L ? load_pairs(p) : load_pairs_n(p, int(depth)));
      continue;
    } else if constexpr (Along) {
      const S* p = from + q * stride;
      if (q < count) x = load_upto(p, depth), y = load_upto(p + L, depth - L);
    } else {
      const S* p = from + 2 * q * k_stride;
      if (2 * q < depth) x = load_upto(p, count);
      if (2 * q + 1 < depth) y = load_upto(p + k_stride, count);
    }
    for (int part = 0; part < parts - 1; ++part) put(part, q, next_part<Along>(x, y));
    put(parts - 1, q, last_part<Along, kOnePart<S>>(x, y));
  }
  if constexpr (Turn)
    for (int part = 0; part < parts; ++part) {
      transpose<float>(square[part]);
      for (int q = 0; q < L; ++q) std::memcpy(out + part * kPart + q * kLine, &square[part][q], sizeof(VecU));
    }
}

// A panel of up to 32 rows of A (Left) or columns of B: element (i, k) is data[i * stride + k * k_stride], and
// Along: k_stride == 1, else stride == 1.
template <bool Left, bool Along, class S>
void pack_tiles(const S* data, index_t stride, index_t k_stride, index_t count, index_t depth, int parts, Half* out) {
  if constexpr (!kTiles) return;
  constexpr int L = kLanes<float>;
  constexpr bool kTurn = Left != Along;
  for (index_t k0 = 0; k0 < depth; k0 += kTileDepth, out += parts * 2 * kTileValues)
    for (index_t i = 0; i < kTilePanel; i += L)
      for (index_t pair = 0; pair < kTileRows; pair += L) {
        index_t k = k0 + 2 * pair, line = i % kTileRows;  // a line of the tile is a row of A or a pair of B
        Half* to = out + i / kTileRows * kTileValues + 2 * (Left ? line * kTileRows + pair : pair * kTileRows + line);
        pack_square<Along, kTurn>(data + i * stride + k * k_stride, stride, k_stride, count - i, depth - k, parts,
                                  reinterpret_cast<VecU*>(to));
      }
}

// ---- values that the unit would get wrong ----

inline constexpr std::int32_t kWide = 0x53800000;  // 2^40

SEQKERN_INLINE VecI larger_magnitude(const Half* pairs) {
  VecI v;
  std::memcpy(&v, pairs, sizeof v);
  return max<VecI>(v << 16 & 0x7fffffff, v & 0x7fff0000);
}

// Bit i: row i of a packed panel of A holds a wide value.
inline std::uint32_t wide_rows(const Half* panel, index_t depth, int parts) {
  constexpr int L = kLanes<float>;
  std::uint32_t mask = 0;
  for (index_t tile = 0; tile < 2; ++tile) {
    VecI top[kTileRows] = {};
    for (index_t chunk = 0; chunk < tile_chunks(depth); ++chunk)
      for (int row = 0; row < kTileRows; ++row)
        for (int lane = 0; lane < kTileRows; lane += L)
          top[row] = max(top[row], larger_magnitude(panel + (chunk * parts * 2 + tile) * kTileValues +
                                                    row * kTileDepth + 2 * lane));
    for (int row = 0; row < kTileRows; ++row)
      mask |= std::uint32_t(max_lanes(top[row]) >= kWide) << (tile * kTileRows + row);
  }
  return mask;
}

// Bit i: column i of a packed panel of B does.
inline std::uint32_t wide_columns(const Half* panel, index_t depth, int parts) {
  constexpr int L = kLanes<float>;
  std::uint32_t mask = 0;
  for (index_t tile = 0; tile < 2; ++tile)
    for (int lane = 0; lane < kTileRows; lane += L) {
      VecI top{};
      for (index_t chunk = 0; chunk < tile_chunks(depth); ++chunk)
        for (int pair = 0; pair < kTileRows; ++pair)
          top = max(top,
                    larger_magnitude(panel + (chunk * parts * 2 + tile) * kTileValues + pair * kTileDepth + 2 * lane));
      for (int j = 0; j < L; ++j) mask |= std::uint32_t(top[j] >= kWide) << (tile * kTileRows + lane + j);
    }
  return mask;
}

// ---- the product ----

// Left factors: a packed panel of A, and rows where they lie, of one part and whole chunks.
struct PackedLeft {
  const Half* data;
  const Half* row(index_t m) const { return data + m / kTileRows * kTileValues + m % kTileRows * kTileDepth; }
  static constexpr index_t stride = kTileDepth, chunk = 2 * kTileValues;
};
struct RowsLeft {
  const Half* data;
  index_t stride;
  const Half* row(index_t m) const { return data + m * stride; }
  static constexpr index_t chunk = kTileDepth;
};

// f(which, where) for the tiles of C of a square.
template <int RowTiles, class F>
SEQKERN_INLINE void for_sums(float* c, index_t ldc, F f) {
  f(std::integral_constant<int, 0>{}, c), f(std::integral_constant<int, 1>{}, c + kTileRows);
  if constexpr (RowTiles == 1) return;
  c += kTileRows * ldc;
  f(std::integral_constant<int, 2>{}, c), f(std::integral_constant<int, 3>{}, c + kTileRows);
}

// Parts in such an order that a product finds one of its factors still in the registers.
template <int RowTiles, int PA, int PB, class Left>
__attribute__((noinline)) void tile_square(Left left, const Half* b, index_t chunks, float* c, index_t ldc, bool add) {
  const Half *a = left.row(0), *below = left.row(kTileRows);
  constexpr int kLimit = PA > PB ? PA : PB;
  if (add) for_sums<RowTiles>(c, ldc, [&](auto tile, float* at) { tile_load<tile()>(at, ldc); });
  else for_sums<RowTiles>(c, ldc, [&](auto tile, float*) { tile_zero<tile()>(); });
  for (; chunks > 0; --chunks, a += PA * Left::chunk, below += PA * Left::chunk, b += PB * 2 * kTileValues) {
    int held = -1;
#pragma GCC unroll 3
    for (int i = PA - 1; i >= 0; --i) {
      tile_load<4>(a + i * Left::chunk, left.stride);
      if constexpr (RowTiles == 2) tile_load<5>(below + i * Left::chunk, left.stride);
      int most = PB < kLimit - i ? PB : kLimit - i;
#pragma GCC unroll 3
      for (int n = 0; n < most; ++n) {
        int j = (PA - i) % 2 ? most - 1 - n : n;
        if (j != held) {
          tile_load<6>(b + 2 * j * kTileValues, kTileDepth);
          tile_load<7>(b + (2 * j + 1) * kTileValues, kTileDepth);
        }
        held = j;
        tile_dot<0, 4, 6>(), tile_dot<1, 4, 7>();
        if constexpr (RowTiles == 2) tile_dot<2, 5, 6>(), tile_dot<3, 5, 7>();
      }
    }
  }
  for_sums<RowTiles>(c, ldc, [&](auto tile, float* at) { tile_store<tile()>(at, ldc); });
}

template <int RowTiles>
void tile_square(Parts parts, PackedLeft a, const Half* b, index_t chunks, float* c, index_t ldc, bool add) {
  switch (parts.a * 4 + parts.b) {
    case 5: return tile_square<RowTiles, 1, 1>(a, b, chunks, c, ldc, add);
    case 9: return tile_square<RowTiles, 2, 1>(a, b, chunks, c, ldc, add);
    case 10: return tile_square<RowTiles, 2, 2>(a, b, chunks, c, ldc, add);
    case 13: return tile_square<RowTiles, 3, 1>(a, b, chunks, c, ldc, add);
    case 14: return tile_square<RowTiles, 3, 2>(a, b, chunks, c, ldc, add);
  }
}

// The product without tile registers, of one part each, with the first Columns of a panel of B: eight rows of C at a
// time, and as many chunks as keep their part of B in the first-level cache for all of them.
template <int Columns, class Left>
void pair_product(Left a, const Half* b, index_t chunks, index_t rows, float* c, index_t ldc, bool add) {
  constexpr int L = kLanes<float>, kRows = 8, kVecs = Columns / L;
  constexpr index_t kChunks = 8, kStep = 2 * kTileValues;
  for (index_t first = 0; first < std::max<index_t>(chunks, 1); first += kChunks)
    for (index_t row = 0; row < rows; row += kRows) {
      int height = int(std::min<index_t>(kRows, rows - row));
      float* out = c + row * ldc;
      Vec<float> sums[kRows][kVecs] = {};
      if (first || add)
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m)
          for (int v = 0; v < kVecs && m < height; ++v) sums[m][v] = load(out + m * ldc + v * L);
      const Half* left = a.row(row);
      for (index_t chunk = first; chunk < std::min(chunks, first + kChunks); ++chunk)
#pragma GCC unroll 4
        for (int pair = 0; pair < kTileRows; ++pair) {
          VecU line[kVecs];
#pragma GCC unroll 8
          for (int v = 0; v < kVecs; ++v)
            std::memcpy(&line[v],
                        b + chunk * kStep + v * L / kTileRows * kTileValues + pair * kTileDepth + v * L % kTileRows * 2,
                        sizeof(VecU));
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            std::uint32_t values;
            std::memcpy(&values, left + chunk * Left::chunk + m * a.stride + 2 * pair, sizeof values);
#pragma GCC unroll 8
            for (int v = 0; v < kVecs; ++v) sums[m][v] = dot_pairs(sums[m][v], splat(values), line[v]);
          }
        }
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m)
        for (int v = 0; v < kVecs && m < height; ++v) store(out + m * ldc + v * L, sums[m][v]);
    }
}

// c[rows <= 32][32] = a packed panel of A times one of B, or that much more (add); rows beyond `rows` are not written.
inline void tile_product(Parts parts, const Half* a, const Half* b, index_t depth, index_t rows, float* c, index_t ldc,
                         bool add = false) {
  if constexpr (!kTileRegisters)
    return pair_product<int(kTilePanel)>(PackedLeft{a}, b, tile_chunks(depth), rows, c, ldc, add);
  alignas(64) float square[kTilePanel * kTilePanel];
  bool whole = rows == kTileRows || rows == kTilePanel;
  float* to = whole ? c : square;
  index_t stride = whole ? ldc : kTilePanel;
  if (rows <= kTileRows) tile_square<1>(parts, PackedLeft{a}, b, tile_chunks(depth), to, stride, whole && add);
  else tile_square<2>(parts, PackedLeft{a}, b, tile_chunks(depth), to, stride, whole && add);
  if (whole) return;
  for (index_t m = 0; m < rows; ++m)
    for (index_t v = 0; v < kTilePanel; v += kLanes<float>) {
      Vec<float> sum = load(square + m * kTilePanel + v);
      store(c + m * ldc + v, add ? load(c + m * ldc + v) + sum : sum);
    }
}

}  // namespace seqkern::SEQKERN_ISA
