// The products that the kernels share, of one instruction set.
#define SEQKERN_ONCE template
#include "products.h"
