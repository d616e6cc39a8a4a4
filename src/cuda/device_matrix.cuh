// The device layer's products of matrices, of a warp and of a warpgroup. Include device.cuh.
#pragma once
#include "cuda/device_memory.cuh"

namespace seqkern::cuda {

// ---- warp matrix products: D [16, 8] += A [16, 16] B [16, 8] of 16-bit values, sums in float ----
//
// Lane l holds, with g = l / 4 and t = l % 4, in pairs of adjacent columns (of A and D) or rows (of B) from 2t on:
//   A  rows g, g + 8, then the same eight columns further      B  column g, then the same eight rows further
//   D  row g, then row g + 8

// Two values rounded to T, the first in the lower half.
template <class T>
SEQKERN_INLINE std::uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
#if SEQKERN_HOSTCUDA
  T a, b;
  store(&a, low), store(&b, high);
  return std::uint32_t(a.bits) | std::uint32_t(b.bits) << 16;
#else
  std::uint32_t both;
  if constexpr (std::is_same_v<T, bf16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}

#if SEQKERN_HOSTCUDA
template <bool kTransposed>
void load_matrices_on_host(std::uint32_t (&r)[4], const void* row) {
  hostcuda::check_aligned(row, 16, "ldmatrix");
  hostcuda::read_shared(row, 16);
  hostcuda::collective(
      kAllLanes, "ldmatrix", &row, &r, [](std::uint32_t, void* const* in, void* const* out) HOSTCUDA_FOR_ALL {
        auto at = [&](int matrix, int i, int j) HOSTCUDA_FOR_ALL {
          return std::uint32_t((*static_cast<const std::uint16_t**>(in[matrix * 8 + i]))[j]);
        };
        for (int l = 0; l < 32; ++l)
          for (int m = 0; m < 4; ++m) {
            int g = l / 4, t = l % 4 * 2;
            static_cast<std::uint32_t*>(out[l])[m] =
                kTransposed ? at(m, t, g) | at(m, t + 1, g) << 16 : at(m, g, t) | at(m, g, t + 1) << 16;
          }
      });
}
template <class T>
void multiply_on_host(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  struct Fragments {
    const std::uint32_t *a, *b;
  } mine{a, b};
  hostcuda::collective(kAllLanes, "mma", &mine, &d,
                       [](std::uint32_t, void* const* in, void* const* out) HOSTCUDA_FOR_ALL {
                         auto half = [](std::uint32_t pair, int which) HOSTCUDA_FOR_ALL {
                           T v{std::uint16_t(pair >> 16 * which)};
                           return double(load(&v));
                         };
                         auto left = [&](int i, int k) HOSTCUDA_FOR_ALL {
                           return half(static_cast<Fragments*>(in[i % 8 * 4 + k % 8 / 2])->a[i / 8 + k / 8 * 2], k % 2);
                         };
                         auto right = [&](int k, int j) HOSTCUDA_FOR_ALL {
                           return half(static_cast<Fragments*>(in[j * 4 + k % 8 / 2])->b[k / 8], k % 2);
                         };
                         for (int i = 0; i < 16; ++i)
                           for (int j = 0; j < 8; ++j) {
                             float& to = static_cast<float*>(out[i % 8 * 4 + j / 2])[i / 8 * 2 + j % 2];
                             double sum = to;
                             for (int k = 0; k < 16; ++k) sum += left(i, k) * right(k, j);
                             to = float(sum);
                           }
                       });
}
#endif

// Four 8 x 8 matrices of 16-bit values from shared memory; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed = false>
SEQKERN_INLINE void load_matrices(std::uint32_t (&r)[4], const void* row) {
#if SEQKERN_HOSTCUDA
  load_matrices_on_host<kTransposed>(r, row);
#else
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}
template <class T>
SEQKERN_INLINE void multiply(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if SEQKERN_HOSTCUDA
  multiply_on_host<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, bf16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- products of a warpgroup (compute capability 9.0a): D [64, N] += A [64, 16] B [16, N], in the background ----
//
// Of D, and of A where it comes from registers, warp w % 4 holds rows 16 w .. 16 w + 15 as in a warp's product, tile
// after tile of eight columns. Otherwise an operand lies in shared memory in panels of rows of 128 bytes, the piece of
// 16 bytes c of row r at c ^ (r % 8), each panel at a multiple of 1024 bytes. Rows are those of A, the columns of B; or
// where B is transposed its own rows.

SEQKERN_INLINE std::uint32_t operand_address(const void* p) {
#if SEQKERN_HOSTCUDA
  return std::uint32_t(static_cast<const unsigned char*>(p) -
                       static_cast<const unsigned char*>(hostcuda::dynamic_shared()));
#else
  return shared_address(p);
#endif
}
// The descriptor of an operand `bytes` from p on, its next panel that many bytes away. Added like this those of a tile
// differ by a constant.
SEQKERN_INLINE std::uint64_t operand(const void* p, int bytes = 0, int panel_bytes = 16) {
  constexpr std::uint32_t kSwizzle128 = 1, kEightRows = 1024;
  std::uint32_t low = (operand_address(p) >> 4) + std::uint32_t((bytes >> 4) + (panel_bytes >> 4 << 16));
  return std::uint64_t(kEightRows >> 4 | kSwizzle128 << 30) << 32 | low;
}

#if SEQKERN_HOSTCUDA
template <class T>
float value_on_host(std::uint16_t bits) {
  T v{bits};
  return load(&v);
}
#elif SEQKERN_HOPPER
#define SEQKERN_LIST_32 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define SEQKERN_LIST_64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define SEQKERN_LIST_96 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}"
#define SEQKERN_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SEQKERN_16(i) SEQKERN_4(i), SEQKERN_4(i + 4), SEQKERN_4(i + 8), SEQKERN_4(i + 12)
#define SEQKERN_32 SEQKERN_16(0), SEQKERN_16(16)
#define SEQKERN_64 SEQKERN_32, SEQKERN_16(32), SEQKERN_16(48)
#define SEQKERN_96 SEQKERN_64, SEQKERN_16(64), SEQKERN_16(80)
#define SEQKERN_WGMMA(n, type) "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " "
#endif

// D = or += A B, both from shared memory, B not transposed.
template <class T, int kColumns>
SEQKERN_INLINE void multiply_group(float (&d)[kColumns / 2], std::uint64_t a, std::uint64_t b, bool accumulate) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 192);
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma({kColumns, false, accumulate, a, b, nullptr, d, value_on_host<T>});
#elif SEQKERN_HOPPER
#define SEQKERN_PRODUCT(n, list, registers, at_a, at_b, at_p, type)                                                \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " at_p ", 0;\n\t" SEQKERN_WGMMA(n, type) list ", " at_a ", " at_b \
               ", p, 1, 1, 0, 0;\n\t}"                                                                              \
               : registers                                                                                         \
               : "l"(a), "l"(b), "r"(int(accumulate)))
  if constexpr (kColumns == 64 && std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32", "%33", "%34", "bf16");
  else if constexpr (kColumns == 64)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32", "%33", "%34", "f16");
  else if constexpr (kColumns == 192 && std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("192", SEQKERN_LIST_96, SEQKERN_96, "%96", "%97", "%98", "bf16");
  else if constexpr (kColumns == 192)
    SEQKERN_PRODUCT("192", SEQKERN_LIST_96, SEQKERN_96, "%96", "%97", "%98", "f16");
  else if constexpr (std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64", "%65", "%66", "bf16");
  else
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64", "%65", "%66", "f16");
#undef SEQKERN_PRODUCT
#endif
}
// D = or += A B, A from registers, B transposed or not.
template <class T, int kColumns, bool kTransposed = true>
SEQKERN_INLINE void multiply_group(float (&d)[kColumns / 2], const std::uint32_t (&a)[4], std::uint64_t b,
                                   bool accumulate = true) {
  static_assert(kColumns == 64 || kColumns == 128);
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma({kColumns, kTransposed, accumulate, 0, b, a, d, value_on_host<T>});
#elif SEQKERN_HOPPER
#define SEQKERN_PRODUCT(n, list, registers, left, at_b, at_p, at_t, type)                                         \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " at_p ", 0;\n\t" SEQKERN_WGMMA(n, type) list ", {" left "}, " \
               at_b ", p, 1, 1, " at_t ";\n\t}"                                                                    \
               : registers                                                                                         \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kTransposed)))
  if constexpr (kColumns == 64 && std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32, %33, %34, %35", "%36", "%37", "%38", "bf16");
  else if constexpr (kColumns == 64)
    SEQKERN_PRODUCT("64", SEQKERN_LIST_32, SEQKERN_32, "%32, %33, %34, %35", "%36", "%37", "%38", "f16");
  else if constexpr (std::is_same_v<T, bf16>)
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64, %65, %66, %67", "%68", "%69", "%70", "bf16");
  else
    SEQKERN_PRODUCT("128", SEQKERN_LIST_64, SEQKERN_64, "%64, %65, %66, %67", "%68", "%69", "%70", "f16");
#undef SEQKERN_PRODUCT
#endif
}
// Before the first product, and whenever a register of one has been touched since the last.
SEQKERN_INLINE void group_fence() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
SEQKERN_INLINE void group_commit() {
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma_commit();
#elif SEQKERN_HOPPER
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// What x, which is not negative, comes from is done before anything that follows: the compiler would rather wait first.
SEQKERN_INLINE void require(float x) {
#if SEQKERN_HOSTCUDA
  (void)x;
#else
  asm volatile("{\n\t.reg .pred p;\n\tsetp.lt.f32 p, %0, 0f00000000;\n\t@p nanosleep.u32 0;\n\t}" ::"f"(x) : "memory");
#endif
}
// What comes before this, and computes x, is not put off until after it, nor what comes after done before.
template <int kCount>
SEQKERN_INLINE void settle(float (&x)[kCount]) {
#if SEQKERN_HOSTCUDA
  (void)x;
#else
  SEQKERN_UNROLL
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
#endif
}
// Until at most kPending of the products committed last are under way; `d` is the result of one that has ended.
template <int kPending, int kCount>
SEQKERN_INLINE void group_wait(float (&d)[kCount]) {
#if SEQKERN_HOSTCUDA
  hostcuda::wgmma_wait(kPending);
#elif SEQKERN_HOPPER
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
  settle(d);
}
// What this thread wrote to shared memory, or copied there and waited for, is there for products of a warpgroup.
SEQKERN_INLINE void fence_products() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Registers a thread of the warpgroup may have from here on; what one gives up another takes.
template <int kCount>
SEQKERN_INLINE void give_registers() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}
template <int kCount>
SEQKERN_INLINE void take_registers() {
#if !SEQKERN_HOSTCUDA && SEQKERN_HOPPER
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
#endif
}

}  // namespace seqkern::cuda
