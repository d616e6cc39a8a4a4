// Memory of large results, kept when they are freed: what the system hands out anew has to be cleared and mapped page
// by page, which takes longer than most kernels take to fill it.
#pragma once
#include <pybind11/numpy.h>

#include "seqkern/types.h"

namespace seqkern {

// An array of NumPy's whose memory comes from here and returns here (NEP 49). Elements are not set.
pybind11::array result_array(const pybind11::dtype& dtype, const std::vector<index_t>& shape);

}  // namespace seqkern
