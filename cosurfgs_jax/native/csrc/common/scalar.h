// The functions that raster/surfel_math.h asks for, for single floats: one thread of a GPU, or its
// emulation on the host. Included before raster/surfel_math.h. Arguments are clamped as in
// common/vec.h, so that the extremes of both platforms are the same.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>

#include "common/host_device.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

COSURFGS_FN float Splat(float a) { return a; }
COSURFGS_FN bool Less(float a, float b) { return a < b; }
COSURFGS_FN bool LessEqual(float a, float b) { return a <= b; }
COSURFGS_FN bool And(bool a, bool b) { return a && b; }
COSURFGS_FN float Select(bool m, float a, float b) { return m ? a : b; }
// b where either is NaN.
COSURFGS_FN float Min(float a, float b) { return a < b ? a : b; }
COSURFGS_FN float Max(float a, float b) { return a > b ? a : b; }
COSURFGS_FN float Abs(float a) { return fabsf(a); }
COSURFGS_FN float Sqrt(float a) { return sqrtf(a); }
COSURFGS_FN float Reciprocal(float a) { return 1.0f / a; }
COSURFGS_FN float Exp(float a) { return expf(Min(Max(a, -87.0f), 87.0f)); }

// a b + c, rounded once on a GPU. For where two kernels must get the same bits: else each compiler
// decides by itself.
COSURFGS_FN float Fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The instructions of a GPU without what makes them exact: relative errors of 1 and 2 units in the
// last place, denormals are zeros. The host has errors of the same size, by the last bits of the
// argument, so that tests see what they do.
#if defined(__CUDA_ARCH__)
COSURFGS_FN float FastReciprocal(float a) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}
COSURFGS_FN float FastExp2(float a) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
}
#else
COSURFGS_FN float Misrounded(float exact, float argument, int units) {
  uint32_t bits;
  memcpy(&bits, &argument, sizeof(bits));
  return exact * (1.0f + float(int(bits % (2 * units + 1)) - units) * 1.2e-7f);
}
COSURFGS_FN float FastReciprocal(float a) { return Misrounded(1.0f / a, a, 1); }
COSURFGS_FN float FastExp2(float a) { return Misrounded(exp2f(a), a, 2); }
#endif
// exp(-x / 2) for x >= 0.
COSURFGS_FN float FastExpMinusHalf(float a) { return FastExp2(a * (-0.5f * 1.44269504f)); }

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
