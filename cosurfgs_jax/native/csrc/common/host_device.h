// Functions that a CPU and a GPU compile from the same source.
#pragma once

#if defined(__CUDACC__)
#define COSURFGS_FN __host__ __device__ inline
// Code of a whole thread block (gpu/blend.h): for nvcc on a GPU, else for the emulation of
// the tests.
#define COSURFGS_BLOCK_FN __device__ inline
#define COSURFGS_UNROLL _Pragma("unroll")
#else
#define COSURFGS_FN inline
#define COSURFGS_BLOCK_FN inline
#define COSURFGS_UNROLL
#endif
