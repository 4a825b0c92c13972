// Functions that a CPU and a GPU compile from one text.
#pragma once

#if defined(__CUDACC__)
#define COSURFGS_FN __host__ __device__ inline
// Code of a whole thread block (block.h): on a GPU for nvcc, in the emulation of the tests
// elsewhere.
#define COSURFGS_BLOCK_FN __device__ inline
#define COSURFGS_UNROLL _Pragma("unroll")
#else
#define COSURFGS_FN inline
#define COSURFGS_BLOCK_FN inline
#define COSURFGS_UNROLL
#endif
