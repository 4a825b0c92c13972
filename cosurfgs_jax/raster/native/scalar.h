// The functions that surfel_math.h asks for, for single floats: one thread of a GPU, or its emulation on the host. Included
// before surfel_math.h. Arguments are clamped as in vec.h, so that the extremes of both platforms are the same.
#pragma once

#include <math.h>

#include <cstdint>

#include "host_device.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

COSURFGS_FN bool Less(float a, float b) { return a < b; }
COSURFGS_FN float Select(bool m, float a, float b) { return m ? a : b; }
// b where either is NaN.
COSURFGS_FN float Min(float a, float b) { return a < b ? a : b; }
COSURFGS_FN float Max(float a, float b) { return a > b ? a : b; }
COSURFGS_FN float Sqrt(float a) { return sqrtf(a); }
COSURFGS_FN float Reciprocal(float a) { return 1.0f / a; }
COSURFGS_FN float Exp(float a) { return expf(Min(Max(a, -87.0f), 87.0f)); }
// exp(-x / 2) for x >= 0; NaN gives the smallest value.
COSURFGS_FN float ExpMinusHalf(float a) { return exp2f(Max(a * (-0.5f * 1.44269504f), -126.0f)); }

// Adds to memory that other threads add to.
COSURFGS_FN void AtomicAdd(int32_t* target, int32_t value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(target, value);
#else
  *target += value;
#endif
}
COSURFGS_FN void AtomicAdd(float* target, float value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(target, value);
#else
  *target += value;
#endif
}
COSURFGS_FN void AtomicMax(int32_t* target, int32_t value) {
#if defined(__CUDA_ARCH__)
  atomicMax(target, value);
#else
  *target = *target < value ? value : *target;
#endif
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
