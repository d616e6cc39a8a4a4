// The device layer, device_*.cuh: the only inline PTX of the project, and every word of CUDA a kernel uses.
//
// Under nvcc the functions below are PTX or intrinsics. Under any other compiler they have host bodies on top of
// tests/hostcuda/runtime.h, which runs the kernels' own text with one fiber per thread. The layouts of the warp
// matrix instructions are those of the PTX ISA, "Warp-level matrix instructions".
#pragma once
#include "cuda/device_core.cuh"
#include "cuda/device_matrix.cuh"
#include "cuda/device_memory.cuh"
