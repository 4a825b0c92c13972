// What this machine could do: the arithmetic of one (surfel, pixel) pair and nothing else, on data
// in registers and L1.
//
// No tiles to find, no bounds, no skipping, no threads. bench_raster.py compiles it with -O3
// -march=native, runs it beside the kernels and prints their speed as its fraction. Stand-alone on
// purpose: a change to the kernels must not move the floor.
//
// Forward: p from 9 coefficients, u, v, both sigmas, exp, alpha, transmittance, and the sums of
// colour, depth, normal and plane distance. Backward: the same up to alpha, then the gradients with
// their 22 sums, reduced over lanes once per surfel and tile. Prints one line of JSON, in million
// pairs a second.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>
constexpr int kLanes = 16;
#elif defined(__AVX2__)
#include <immintrin.h>
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

constexpr int kPixels = 256, kBlocks = kPixels / kLanes, kSurfels = 64, kRounds = 4;
constexpr float kMinAlpha = 1.0f / 255, kMaxAlpha = 0.99f, kStop = 1e-4f;

struct Surfel {
  float center[2], a[3], b[3], c[3], m2[3], opacity, color[3], normal[3], distance;
};

static Surfel surfels[kSurfels];
static Vec pixel_x[kBlocks], pixel_y[kBlocks];

static inline Vec Reciprocal(Vec a) {
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

static inline Vec Exp(Vec x) {
  const Vec shift =
      12582912.0f - Vec{};  // 1.5 * 2^23: adding it rounds, and leaves the integer in the low bits
  x *= 1.44269504f;
  const Vec n = x + shift, f = x - (n - shift);
  Vec p = 0.0013276472f * f + 0.00967554148f;
  p = p * f + 0.0555071327f;
  p = p * f + 0.240221197f;
  p = p * f + 0.693146967f;
  p = p * f + 1.00000007f;
  return (Vec)((IntVec)p + ((IntVec)n << 23));
}

struct Hit {
  Vec dx, dy, u, v, inv, alpha, z;
  IntVec is_disc;
};

static inline Hit Intersect(const Surfel& s, Vec x, Vec y) {
  Hit h;
  h.dx = x - s.center[0];
  h.dy = y - s.center[1];
  const Vec px = h.dx * s.a[0] + (h.dy * s.b[0] + s.c[0]);
  const Vec py = h.dx * s.a[1] + (h.dy * s.b[1] + s.c[1]);
  const Vec pz = h.dx * s.a[2] + (h.dy * s.b[2] + s.c[2]);
  h.inv = Reciprocal(pz);
  h.u = px * h.inv;
  h.v = py * h.inv;
  const Vec disc = h.u * h.u + h.v * h.v, screen = (h.dx * h.dx + h.dy * h.dy) * 2.0f;
  h.is_disc = disc <= screen;
  const Vec raw = Exp((h.is_disc ? disc : screen) * -0.5f) * s.opacity;
  const Vec clamped = raw < kMaxAlpha ? raw : kMaxAlpha - Vec{};
  h.alpha = clamped >= kMinAlpha ? clamped : Vec{};
  h.z = h.is_disc ? h.u * s.m2[0] + (h.v * s.m2[1] + s.m2[2]) : s.m2[2] - Vec{};
  return h;
}

// kJoint blocks of pixels live in registers while the surfels stream by.
template <int kJoint>
static float Forward() {
  Vec total = Vec{};
  for (int first = 0; first < kBlocks; first += kJoint) {
    Vec t[kJoint], sums[kJoint][8] = {};
    for (Vec& one : t) one = 1.0f - Vec{};
    for (int i = 0; i < kSurfels * kRounds; ++i) {
      const Surfel& s = surfels[i % kSurfels];
      for (int j = 0; j < kJoint; ++j) {
        const Hit h = Intersect(s, pixel_x[first + j], pixel_y[first + j]);
        const Vec product = h.alpha * t[j], after = t[j] - product;
        const Vec w = after >= kStop ? product : Vec{};
        t[j] -= w;
        for (int c = 0; c < 3; ++c) sums[j][c] += w * s.color[c];
        for (int c = 0; c < 3; ++c) sums[j][3 + c] += w * s.normal[c];
        sums[j][6] += w * h.z;
        sums[j][7] += w * s.distance;
      }
    }
    for (int j = 0; j < kJoint; ++j) {
      total += t[j];
      for (const Vec& sum : sums[j]) total += sum;
    }
  }
  float result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result += total[lane];
  return result;
}

template <int kGroup, int... kLane>
static inline Vec Combine(Vec a, Vec b, std::integer_sequence<int, kLane...>) {
  constexpr auto source = [](int i) {
    const int group = i / (2 * kGroup) * (2 * kGroup), rest = i % (2 * kGroup);
    return rest < kGroup ? group + rest : kLanes + group + rest - kGroup;
  };
  return __builtin_shufflevector(a, b, source(kLane)...) +
         __builtin_shufflevector(a, b, (source(kLane) + kGroup)...);
}
// Lane j of the result is the sum of v[j] over its lanes.
template <int kGroup>
static inline Vec Reduce(Vec* v) {
  if constexpr (kGroup == 0) {
    return v[0];
  } else {
    for (int i = 0; i < kGroup; ++i) {
      v[i] = Combine<kGroup>(v[i], v[i + kGroup], std::make_integer_sequence<int, kLanes>{});
    }
    return Reduce<kGroup / 2>(v);
  }
}

constexpr int kSums = 22, kPadded = (kSums + kLanes - 1) / kLanes * kLanes;

struct Pixels {
  Vec t[kBlocks], behind[kBlocks], g_color[kBlocks][3], g_normal[kBlocks][3], g_depth[kBlocks],
      g_distance[kBlocks];
};

static float Backward(Pixels& pixels, float* rows) {
  for (int i = 0; i < kSurfels * kRounds; ++i) {
    const Surfel& s = surfels[i % kSurfels];
    Vec sums[kPadded] = {};
    for (int b = 0; b < kBlocks; ++b) {
      const Hit h = Intersect(s, pixel_x[b], pixel_y[b]);
      const Vec *g_color = pixels.g_color[b], *g_normal = pixels.g_normal[b];
      const Vec inv = Reciprocal(1.0f - h.alpha), t = pixels.t[b] * inv, w = h.alpha * t;
      const Vec e = g_color[0] * s.color[0] + g_color[1] * s.color[1] + g_color[2] * s.color[2] +
                    g_normal[0] * s.normal[0] + g_normal[1] * s.normal[1] +
                    g_normal[2] * s.normal[2] + pixels.g_distance[b] * s.distance +
                    pixels.g_depth[b] * h.z;
      const Vec g_alpha = h.alpha < kMaxAlpha ? t * e - pixels.behind[b] * inv : Vec{};
      pixels.behind[b] += w * e;
      pixels.t[b] = t;
      const Vec g_log = g_alpha * h.alpha, g_sigma = g_log * -0.5f, g_z = w * pixels.g_depth[b];
      const Vec on_disc = h.is_disc ? g_sigma * 2.0f : Vec{}, g_z_disc = h.is_disc ? g_z : Vec{};
      const Vec g_u = on_disc * h.u + g_z_disc * s.m2[0], g_v = on_disc * h.v + g_z_disc * s.m2[1];
      const Vec g_px = g_u * h.inv, g_py = g_v * h.inv, g_pz = -(g_px * h.u + g_py * h.v);
      const Vec on_screen = (h.is_disc ? Vec{} : g_sigma) * 4.0f;
      const Vec g_dx = g_px * s.a[0] + g_py * s.a[1] + g_pz * s.a[2] + on_screen * h.dx;
      const Vec g_dy = g_px * s.b[0] + g_py * s.b[1] + g_pz * s.b[2] + on_screen * h.dy;
      sums[0] += g_px * h.dx;
      sums[1] += g_py * h.dx;
      sums[2] += g_pz * h.dx;
      sums[3] += g_px * h.dy;
      sums[4] += g_py * h.dy;
      sums[5] += g_pz * h.dy;
      sums[6] += g_pz;
      sums[7] -= g_dx;
      sums[8] -= g_dy;
      sums[9] += g_dx > 0 ? g_dx : -g_dx;
      sums[10] += g_dy > 0 ? g_dy : -g_dy;
      sums[11] += g_log;
      for (int c = 0; c < 3; ++c) sums[12 + c] += w * g_color[c];
      for (int c = 0; c < 3; ++c) sums[15 + c] += w * g_normal[c];
      sums[18] += w * pixels.g_distance[b];
      sums[19] += g_z_disc * h.u;
      sums[20] += g_z_disc * h.v;
      sums[21] += g_z;
    }
    for (int first = 0; first < kPadded; first += kLanes) {
      const Vec row = Reduce<kLanes / 2>(sums + first);
      std::memcpy(rows + first, &row, sizeof(row));
    }
    asm volatile("" ::"r"(rows) : "memory");
  }
  return rows[0] + pixels.t[0][0];
}

static float Uniform(float low, float high) {
  return low + (high - low) * (std::rand() / float(RAND_MAX));
}

static void FillSurfels() {
  // Discs of a few tiles across at alpha about 0.01: every pair is blended and no pixel stops.
  for (Surfel& s : surfels) {
    const float size = Uniform(20, 40), depth = Uniform(2, 4);
    s = {{Uniform(0, 16), Uniform(0, 16)},
         {0, depth, Uniform(-.01f, .01f)},
         {depth, 0, Uniform(-.01f, .01f)},
         {0, 0, depth * size},
         {Uniform(-1, 1), Uniform(-1, 1), depth},
         Uniform(.008f, .012f),
         {.1f, .5f, .9f},
         {.6f, 0, -.8f},
         depth};
  }
}

static void FillPixels(Pixels& pixels) {
  for (int b = 0; b < kBlocks; ++b) {
    for (int lane = 0; lane < kLanes; ++lane) {
      pixel_x[b][lane] = (b * kLanes + lane) % 16 + .5f;
      pixel_y[b][lane] = (b * kLanes + lane) / 16 + .5f;
    }
    pixels.t[b] = .3f - Vec{};
    pixels.behind[b] = .1f - Vec{};
    pixels.g_depth[b] = pixels.g_distance[b] = .01f - Vec{};
    for (int c = 0; c < 3; ++c) pixels.g_color[b][c] = pixels.g_normal[b][c] = .01f * c - Vec{};
  }
}

static double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static volatile float sink;

// Million pairs a second: the best of slices of 5 ms, since other programs can only slow it down.
template <class Function>
static double Speed(double seconds, Function run) {
  double best = 0;
  for (const double end = Now() + seconds; Now() < end;) {
    int calls = 0;
    const double start = Now();
    double elapsed = 0;
    for (; elapsed < 5e-3; ++calls, elapsed = Now() - start) sink = run();
    const double speed = 1e-6 * calls * kSurfels * kRounds * kPixels / elapsed;
    if (speed > best) best = speed;
  }
  return best;
}

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0.5;
  static Pixels pixels;
  alignas(64) static float rows[kPadded];
  FillSurfels();
  FillPixels(pixels);
  double forward = 0;
  for (float (*run)() : {Forward<1>, Forward<2>, Forward<4>})
    forward = std::max(forward, Speed(seconds / 3, run));
  const double backward = Speed(seconds, [&] {
    FillPixels(pixels);
    return Backward(pixels, rows);
  });
  std::printf("{\"lanes\": %d, \"forward_mpairs\": %.1f, \"backward_mpairs\": %.1f}\n", kLanes,
              forward, backward);
}
