#include "seqkern/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "kernel_table.h"
#include "seqkern_isas.h"  // SEQKERN_ISAS: X(name) for every instruction set built, plainest first
#if defined(SEQKERN_EMULATE_AMX)
#include "../../tests/amx/emulator.h"
#elif defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace seqkern {

#define SEQKERN_EXTERN(isa)         \
  namespace isa {                   \
  extern const KernelTable kernels; \
  }
SEQKERN_ISAS(SEQKERN_EXTERN)
#undef SEQKERN_EXTERN

namespace {

// Every name this architecture knows, plainest first, whether or not it is in this build.
#if defined(__x86_64__)
constexpr const char* kKnown[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};
#elif defined(__aarch64__)
constexpr const char* kKnown[] = {"scalar", "neon"};
#else
constexpr const char* kKnown[] = {"scalar"};
#endif

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#endif

#if defined(SEQKERN_EMULATE_AMX)  // tests/amx: over AVX2, see there
bool has_amx() {
  install_amx_emulator();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#elif defined(__x86_64__) && defined(__linux__)
// The CPU has tiles and bf16 products, the system saves them at a context switch, and this process may use them:
// Linux hands out the large state on request only, for all threads of the process.
bool has_amx() {
  if (!has_avx512_bf16()) return false;
  constexpr unsigned kAvx512 = 0xe6, kTiles = 3u << 17;  // states in XCR0
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kOsxsave = 1u << 27;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsxsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile)) != (kBf16 | kTile)) return false;
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  if ((a & (kAvx512 | kTiles)) != (kAvx512 | kTiles)) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__x86_64__)
bool has_amx() { return false; }
#endif

bool machine_has(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512") return has_avx512();
  if (isa == "avx512_bf16") return has_avx512_bf16();
  if (isa == "amx") return has_amx();
#endif
  return isa == "scalar" || isa == "neon";
}

std::vector<const KernelTable*> usable() {
  std::vector<const KernelTable*> tables;
#define SEQKERN_PUSH(isa) \
  if (machine_has(#isa)) tables.push_back(&isa::kernels);
  SEQKERN_ISAS(SEQKERN_PUSH)
#undef SEQKERN_PUSH
  if (tables.empty()) throw std::runtime_error("seqkern was built for instruction sets that this machine lacks");
  return tables;
}

int rank(const std::string& isa) {
  int i = 0;
  for (auto name : kKnown) {
    if (isa == name) return i;
    ++i;
  }
  return -1;
}

// The named table, or the best one below it where the machine or the build lacks it.
const KernelTable* choose() {
  auto tables = usable();
  const char* cap = std::getenv("SEQKERN_ISA");
  if (!cap || !*cap) return tables.back();
  const KernelTable* best = nullptr;
  for (auto t : tables)
    if (rank(t->isa) <= rank(cap)) best = t;
  if (best) return best;
  std::string names;
  for (auto name : kKnown)
    if (rank(name) >= rank(tables.front()->isa)) names += (names.empty() ? "" : ", ") + std::string(name);
  throw std::invalid_argument("SEQKERN_ISA must be one of " + names + ", got '" + cap + "'");
}

std::atomic<const KernelTable*> active{nullptr};

const KernelTable& table() {
  const KernelTable* t = active.load(std::memory_order_acquire);
  if (!t) active.store(t = choose(), std::memory_order_release);
  return *t;
}

}  // namespace

std::string active_isa() { return table().isa; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (auto t : usable()) names.push_back(t->isa);
  return names;
}

void set_isa(const std::string& name) {
  std::string all;
  for (auto t : usable()) {
    if (t->isa == name) return active.store(t, std::memory_order_release);
    all += (all.empty() ? "" : ", ") + std::string(t->isa);
  }
  throw std::invalid_argument("isa must be one of " + all + ", got '" + name + "'");
}

namespace cpu {
#define SEQKERN_CALL(name, Params) \
  void name(const Params& p) { table().name(p); }
SEQKERN_KERNELS(SEQKERN_CALL)
#undef SEQKERN_CALL
}  // namespace cpu

}  // namespace seqkern
