#include "seqkern/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "kernel_table.h"
#include "seqkern_isas.h"  // SEQKERN_ISAS: X(name) for every instruction set built, plainest first
namespace seqkern {

#define SEQKERN_EXTERN(isa)         \
  namespace isa {                   \
  extern const KernelTable kernels; \
  }
SEQKERN_ISAS(SEQKERN_EXTERN)
#undef SEQKERN_EXTERN

namespace {

bool machine_has(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
#endif
  return isa == "scalar" || isa == "neon";
}

std::vector<const KernelTable*> usable() {
  std::vector<const KernelTable*> tables;
#define SEQKERN_PUSH(isa) \
  if (machine_has(#isa)) tables.push_back(&isa::kernels);
  SEQKERN_ISAS(SEQKERN_PUSH)
#undef SEQKERN_PUSH
  return tables;
}

// The named table, or the best one below it where the machine or the build lacks it.
const KernelTable* choose() {
  auto tables = usable();
  const KernelTable* best = tables.back();
  if (const char* cap = std::getenv("SEQKERN_ISA")) {
    bool known = false;
#define SEQKERN_CAP(isa)                                 \
  if (!known && machine_has(#isa)) best = &isa::kernels; \
  known = known || std::string(cap) == #isa;
    SEQKERN_ISAS(SEQKERN_CAP)
#undef SEQKERN_CAP
    if (!known) best = tables.back();
  }
  return best;
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
