// The table of one instruction set; compiled once for each.
#include "kernel_table.h"

#define SEQKERN_STRING_(x) #x
#define SEQKERN_STRING(x) SEQKERN_STRING_(x)

namespace seqkern::SEQKERN_ISA {

#define SEQKERN_DECLARE(name, Params) void name(const Params&);
SEQKERN_KERNELS(SEQKERN_DECLARE)
#undef SEQKERN_DECLARE

extern const KernelTable kernels;
const KernelTable kernels = {SEQKERN_STRING(SEQKERN_ISA),
#define SEQKERN_ENTRY(name, Params) name,
                             SEQKERN_KERNELS(SEQKERN_ENTRY)
#undef SEQKERN_ENTRY
};

}  // namespace seqkern::SEQKERN_ISA
