// Products of bf16 values with fp32 sums, and the only file where AMX and AVX512-BF16 show.
//
//   C[16 rows, 16 fp32] += A[16 rows, 32 bf16] B[16 pairs of k, 16 columns of 2 bf16]
//
// AMX has eight registers ("tiles") of 16 rows by 64 bytes: 0-3 hold a 2 x 2 square of C, 4 and 5 two tiles of A, 6 and
// 7 two of B. Packed tiles are 1 KiB without gaps. Assembly instead of intrinsics: GCC 12's know nothing of the
// memory they read and write. AVX512-BF16 takes one pair of k for 16 columns: a line of a tile of B (dot_pairs).
//
// Both round to nearest, take subnormal inputs for zero and flush subnormal results. An instruction set with neither
// has kTiles == false and functions that are never called.
#pragma once
#include "vec.h"

namespace seqkern::SEQKERN_ISA {

inline constexpr int kTileRows = 16;         // of A and C; also columns of B and C
inline constexpr int kTileDepth = 32;        // values of k in one tile
inline constexpr index_t kTileValues = 512;  // bf16 values of one tile

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
inline constexpr bool kTiles = true, kTileRegisters = true;

// Tile registers have a shape, set for each thread before it uses them and given back afterwards: a thread
// that holds none costs the kernel nothing at a context switch.
class TileScope {
 public:
  explicit TileScope(bool wanted) : held_(wanted) {
    if (!held_) return;
    struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    static_assert(sizeof config == 64);
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~TileScope() {
    if (held_) asm volatile("tilerelease" : : : "memory");
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  bool held_;
};

template <int Tile>
SEQKERN_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
// Rows of 64 bytes, `stride` values apart.
template <int Tile, class Value>
SEQKERN_INLINE void tile_load(const Value* p, index_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride * index_t(sizeof(Value))), "i"(Tile) : "memory");
}
template <int Tile>
SEQKERN_INLINE void tile_store(float* p, index_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride * 4), "i"(Tile) : "memory");
}
template <int C, int A, int B>
SEQKERN_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
#else
#if defined(__AVX512BF16__)
inline constexpr bool kTiles = true;
#else
inline constexpr bool kTiles = false;
#endif
inline constexpr bool kTileRegisters = false;

struct TileScope {
  explicit TileScope(bool) {}
};
template <int Tile>
void tile_zero() {}
template <int Tile, class Value>
void tile_load(const Value*, index_t) {}
template <int Tile>
void tile_store(float*, index_t) {}
template <int C, int A, int B>
void tile_dot() {}
#endif

// Values of x and then of y as bf16; a subnormal one may come out as zero.
SEQKERN_INLINE VecU narrow_beside(Vec<float> x, Vec<float> y) {
#if defined(__AVX512BF16__)
  return bit_cast<VecU>(_mm512_cvtne2ps_pbh(y, x));
#else
  struct {
    VecU16 x, y;
  } both{narrow(x), narrow(y)};
  return bit_cast<VecU>(both);
#endif
}

// The x (0) or the y (1) of narrow_beside.
template <int Half>
SEQKERN_INLINE Vec<float> widen_half(VecU both) {
#if defined(__AVX512BF16__)  // GCC would go through memory
  return widen(bit_cast<VecU16>(_mm512_maskz_extracti64x4_epi64(0xf, bit_cast<__m512i>(both), Half)));
#else
  VecU16 halves[2];
  std::memcpy(halves, &both, sizeof both);
  return widen(halves[Half]);
#endif
}

// sum + the first of each pair times its like + the second.
SEQKERN_INLINE Vec<float> dot_pairs(Vec<float> sum, [[maybe_unused]] VecU a, [[maybe_unused]] VecU b) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(a), bit_cast<__m512bh>(b));
#else
  return sum;
#endif
}

}  // namespace seqkern::SEQKERN_ISA
