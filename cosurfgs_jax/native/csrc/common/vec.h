// Explicit vectors of floats, one width per instruction set. Included only by files that are
// compiled once per variant.
//
// The width decides the speed, so it is never left to the auto-vectoriser: 16 lanes with AVX-512, 8
// with AVX2, 4 elsewhere (SSE2 and NEON through the compiler's generic vectors).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cosurfgs {
namespace COSURFGS_VARIANT {

#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// alignas(4 * kLanes) comes with the type.
typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

inline Vec Splat(float x) { return x - Vec{}; }
inline IntVec SplatInt(int32_t x) { return x - IntVec{}; }
inline Vec Load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }

// A mask is a bit per lane with AVX-512 and a vector of 0 / -1 elsewhere.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
using Mask = __mmask16;
inline Mask Less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask LessEqual(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
inline Mask LessEqualInt(IntVec a, IntVec b) {
  return _mm512_cmple_epi32_mask((__m512i)a, (__m512i)b);
}
inline Mask EqualInt(IntVec a, IntVec b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
inline Vec Select(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
inline Vec Keep(Mask m, Vec a) { return _mm512_maskz_mov_ps(m, a); }  // 0 where the mask is not set
inline IntVec SelectInt(Mask m, IntVec a, IntVec b) {
  return (IntVec)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a);
}
inline bool Any(Mask m) { return m != 0; }
inline Mask And(Mask a, Mask b) { return a & b; }
inline Mask AndNot(Mask a, Mask b) { return a & ~b; }
inline Mask Or(Mask a, Mask b) { return a | b; }
inline int Count(Mask m) { return __builtin_popcount(m); }
inline Mask MaskNone() { return 0; }
inline Mask MaskAll() { return 0xffff; }
#else
using Mask = IntVec;
inline Mask Less(Vec a, Vec b) { return a < b; }
inline Mask LessEqual(Vec a, Vec b) { return a <= b; }
inline Mask LessEqualInt(IntVec a, IntVec b) { return a <= b; }
inline Mask EqualInt(IntVec a, IntVec b) { return a == b; }
inline Vec Select(Mask m, Vec a, Vec b) { return m ? a : b; }
inline Vec Keep(Mask m, Vec a) { return (Vec)(m & (IntVec)a); }
inline IntVec SelectInt(Mask m, IntVec a, IntVec b) { return m ? a : b; }
#if defined(__AVX2__)
inline bool Any(Mask m) { return !_mm256_testz_si256((__m256i)m, (__m256i)m); }
inline int Count(Mask m) { return __builtin_popcount(_mm256_movemask_ps((__m256)m)); }
#else
inline bool Any(Mask m) {
  typedef int64_t Halves __attribute__((vector_size(16)));
  Halves h = (Halves)m;
  return (h[0] | h[1]) != 0;
}
inline int Count(Mask m) { return -(m[0] + m[1] + m[2] + m[3]); }
#endif
inline Mask And(Mask a, Mask b) { return a & b; }
inline Mask AndNot(Mask a, Mask b) { return a & ~b; }
inline Mask Or(Mask a, Mask b) { return a | b; }
inline Mask MaskNone() { return IntVec{}; }
inline Mask MaskAll() { return ~IntVec{}; }
#endif

// b where either is NaN.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
#elif defined(__AVX2__)
inline Vec Min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
#else
inline Vec Min(Vec a, Vec b) { return Select(Less(a, b), a, b); }
inline Vec Max(Vec a, Vec b) { return Select(Less(b, a), a, b); }
#endif
inline Vec Abs(Vec a) { return (Vec)((IntVec)a & SplatInt(0x7fffffff)); }

// Reciprocal to about 1 ulp; NaN (not infinity) for zeros and denormals. The estimate and one
// Newton step take 4 operations where a division blocks the divider for 10 to 24 cycles.
inline Vec Reciprocal(Vec a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  Vec r = _mm512_rcp14_ps(a);
  return r * (2.0f - a * r);
#elif defined(__AVX2__)
  Vec r = _mm256_rcp_ps(a);
  return r * (2.0f - a * r);
#else
  return 1.0f / a;
#endif
}

inline Vec Sqrt(Vec a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_sqrt_ps(a);
#elif defined(__AVX2__)
  return _mm256_sqrt_ps(a);
#else
  for (int i = 0; i < kLanes; ++i) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

inline IntVec RoundToInt(Vec a) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return (IntVec)_mm512_cvtps_epi32(a);
#elif defined(__AVX2__)
  return (IntVec)_mm256_cvtps_epi32(a);
#else
  return __builtin_convertvector(a + Select(Less(a, Vec{}), Splat(-0.5f), Splat(0.5f)), IntVec);
#endif
}

// 2^x on [-126, 126], relative error 8e-8: 2^n times a degree 5 polynomial on [-0.5, 0.5].
inline Vec Exp2InRange(Vec x) {
  IntVec n = RoundToInt(x);
  Vec f = x - __builtin_convertvector(n, Vec);
  Vec p = Splat(0.0013276472f);
  p = p * f + 0.00967554148f;
  p = p * f + 0.0555071327f;
  p = p * f + 0.240221197f;
  p = p * f + 0.693146967f;
  p = p * f + 1.00000007f;
  return (Vec)((IntVec)p + (n << 23));
}
constexpr float kLog2E = 1.44269504f;
// Arguments are clamped to [-87, 87].
inline Vec Exp(Vec x) { return Exp2InRange(Min(Max(x, Splat(-87.0f)), Splat(87.0f)) * kLog2E); }
// exp(-x / 2) for x >= 0; NaN gives the smallest value.
inline Vec ExpMinusHalf(Vec x) { return Exp2InRange(Max(x * (-0.5f * kLog2E), Splat(-126.0f))); }

// Sums of kLanes vectors over their lanes: lane j of the result is the sum of v[j]. Overwrites v.
// Each step turns the lane groups [a0 a1], [b0 b1] of two vectors into [a0 + a1, b0 + b1].
template <int kBlock, int... kLane>
inline Vec CombineGroups(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  constexpr auto source = [](int i) {
    int group = i / (2 * kBlock) * (2 * kBlock), r = i % (2 * kBlock);
    return r < kBlock ? group + r : kLanes + group + (r - kBlock);
  };
  return __builtin_shufflevector(a, b, source(kLane)...) +
         __builtin_shufflevector(a, b, (source(kLane) + kBlock)...);
}
template <int kBlock>
inline void ReduceStep(Vec* v) {
  if constexpr (kBlock >= 1) {
    for (int i = 0; i < kBlock; ++i) {
      v[i] = CombineGroups<kBlock>(v[i], v[i + kBlock], std::make_integer_sequence<int, kLanes>{});
    }
    ReduceStep<kBlock / 2>(v);
  }
}
inline Vec ReduceLanes(Vec* v) {
  ReduceStep<kLanes / 2>(v);
  return v[0];
}

// kLanes RGB pixels between three vectors as they lie in memory and one vector per channel. Each
// result takes two shuffles: what the first cannot reach, the second replaces.
template <int kChannel, int... kLane>
inline Vec SeparateChannel(Vec a, Vec b, Vec c, std::integer_sequence<int, kLane...>) {
  constexpr auto at = [](int j) { return 3 * j + kChannel; };
  const Vec ab = __builtin_shufflevector(a, b, (at(kLane) < 2 * kLanes ? at(kLane) : 0)...);
  return __builtin_shufflevector(ab, c, (at(kLane) < 2 * kLanes ? kLane : at(kLane) - kLanes)...);
}
inline void Separate(Vec a, Vec b, Vec c, Vec* channels) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
  channels[0] = SeparateChannel<0>(a, b, c, lanes);
  channels[1] = SeparateChannel<1>(a, b, c, lanes);
  channels[2] = SeparateChannel<2>(a, b, c, lanes);
}
template <int kPart, int... kLane>
inline Vec JoinPart(Vec red, Vec green, Vec blue, std::integer_sequence<int, kLane...>) {
  constexpr auto at = [](int j) { return kPart * kLanes + j; };
  const Vec two = __builtin_shufflevector(
      red, green, (at(kLane) % 3 < 2 ? at(kLane) % 3 * kLanes + at(kLane) / 3 : 0)...);
  return __builtin_shufflevector(two, blue,
                                 (at(kLane) % 3 < 2 ? kLane : kLanes + at(kLane) / 3)...);
}
inline void Join(Vec red, Vec green, Vec blue, Vec* parts) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
  parts[0] = JoinPart<0>(red, green, blue, lanes);
  parts[1] = JoinPart<1>(red, green, blue, lanes);
  parts[2] = JoinPart<2>(red, green, blue, lanes);
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
