// The table of one instruction set; compiled once for each. SEQKERN_OTHERS: whose kernels stand in where this one
// has no path of its own.
#include "kernel_table.h"

#include "kernels/types_cpu.h"

#define SEQKERN_STRING_(x) #x
#define SEQKERN_STRING(x) SEQKERN_STRING_(x)

namespace seqkern::SEQKERN_ISA {

#define SEQKERN_DECLARE(name, Params) void name(const Params&);
SEQKERN_TILE_KERNELS(SEQKERN_DECLARE)
#ifndef SEQKERN_OTHERS
SEQKERN_OTHER_KERNELS(SEQKERN_DECLARE)
#define SEQKERN_OTHERS SEQKERN_ISA
#else
}  // namespace seqkern::SEQKERN_ISA
namespace seqkern::SEQKERN_OTHERS {
SEQKERN_KERNELS(SEQKERN_DECLARE)
}  // namespace seqkern::SEQKERN_OTHERS
namespace seqkern::SEQKERN_ISA {
#endif
#undef SEQKERN_DECLARE

// By the types of one call.
template <auto Own, auto Other>
constexpr auto either = []<class P>(void (*)(const P&)) {
  return +[](const P& p) {
    DType weight_dtype = p.dtype;
    if constexpr (requires { p.weight_dtype; }) weight_dtype = p.weight_dtype;
    owns(p.dtype, weight_dtype) ? Own(p) : Other(p);
  };
}(Own);

extern const KernelTable kernels;
const KernelTable kernels = {SEQKERN_STRING(SEQKERN_ISA),
#define SEQKERN_ENTRY(name, Params) either<name, SEQKERN_OTHERS::name>,
                             SEQKERN_TILE_KERNELS(SEQKERN_ENTRY)
#undef SEQKERN_ENTRY
#define SEQKERN_ENTRY(name, Params) SEQKERN_OTHERS::name,
                                 SEQKERN_OTHER_KERNELS(SEQKERN_ENTRY)
#undef SEQKERN_ENTRY
};

}  // namespace seqkern::SEQKERN_ISA
