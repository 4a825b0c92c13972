// SSIM and its gradient in one pass over a band of rows; compiled once per instruction set.
//
// The map needs four filtered images, not five, because only the sum of the two variances enters:
//   F(a), F(b), F(a a + b b), F(a b).
// The gradient filters three more: d = F(P0) + 2 a F(P1) + b F(P2), where P are the map's derivatives by the first,
// third and fourth. Images are cut into column strips so that the rows in flight stay in the second-level cache. Within
// a strip, eight rows are filtered vertically at once (18 loads for 88 multiply-adds), then each row horizontally by
// unaligned loads. Value and gradient of 1000 x 751 x 3 take 8 ms on one core with AVX-512 and 11 with AVX2; the
// multiply-adds alone (154 per value) would take 3 and 6.
//
// Nothing from the C++ library is used here: a template instantiated in the AVX-512 variant could be the copy that the
// linker keeps for everyone.

#include "ssim.h"

#include "vec.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

constexpr int kRadius = 5;
constexpr int kTaps = 2 * kRadius + 1;
constexpr float kWeights[kTaps] = {0.00102838008f, 0.00759875814f, 0.0360007721f, 0.10936069f,
                                   0.213005538f,   0.266011725f,   0.213005538f,  0.10936069f,
                                   0.0360007721f,  0.00759875814f, 0.00102838008f};
constexpr float kC1 = 1e-4f;
constexpr float kC2 = 9e-4f;

constexpr int kBlockRows = 8;                              // rows filtered vertically at once
constexpr int kWindowRows = kBlockRows + 2 * kRadius;      // input rows for them
constexpr int kRingRows = 24;                              // rows of P kept: three blocks cover a window at any phase
constexpr int64_t kStrip = 768;                            // floats of a strip's core: 0.4 MB of scratch
constexpr int kMoments = 4;
constexpr int kPartials = 3;

inline int64_t RoundUp(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }
inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Larger(int64_t a, int64_t b) { return a > b ? a : b; }

// One strip: image columns (interleaved floats) [begin, begin + size) and its rows of scratch. `halo` is the reach of
// the window. Rows of moments start at column begin - 2 halo, of P and the map at begin - halo, of filtered P at begin.
struct Strip {
  const float* a;
  const float* b;
  int64_t height, row_floats, channels, halo;
  int64_t begin, size, stride;
  float* raw;       // [kMoments][kWindowRows][stride]: a, b, a a + b b, a b
  float* filtered;  // [kMoments][kBlockRows][stride]
  float* partials;  // [kPartials][stride]
  float* map;       // [stride]
  float* ring;      // [kPartials][kRingRows][stride]

  float* Raw(int moment, int64_t slot) const { return raw + (moment * kWindowRows + slot) * stride; }
  float* Filtered(int moment, int row) const { return filtered + (moment * kBlockRows + row) * stride; }
  float* Ring(int partial, int64_t slot) const { return ring + (partial * kRingRows + slot) * stride; }
};

// A row of raw moments, zero outside the image.
void LoadRow(const Strip& s, int64_t y, int64_t slot) {
  float* rows[kMoments] = {s.Raw(0, slot), s.Raw(1, slot), s.Raw(2, slot), s.Raw(3, slot)};
  if (y < 0 || y >= s.height) {
    for (float* row : rows) std::memset(row, 0, s.stride * sizeof(float));
    return;
  }
  int64_t first = s.begin - 2 * s.halo;
  int64_t from = Larger(0, -first), to = Smaller(s.size + 4 * s.halo, s.row_floats - first);
  for (int image = 0; image < 2; ++image) {
    std::memset(rows[image], 0, from * sizeof(float));
    std::memcpy(rows[image] + from, (image ? s.b : s.a) + y * s.row_floats + first + from, (to - from) * sizeof(float));
    std::memset(rows[image] + to, 0, (s.stride - to) * sizeof(float));
  }
  for (int64_t i = 0; i < s.stride; i += kLanes) {
    Vec a = Load(rows[0] + i), b = Load(rows[1] + i);
    Store(rows[2] + i, a * a + b * b);
    Store(rows[3] + i, a * b);
  }
}

// out[k] = sum over t of weight[t] rows[k + t], for kBlockRows rows.
void FilterVertically(const float* const* rows, float* out, int64_t stride, int64_t length) {
  for (int64_t i = 0; i < length; i += kLanes) {
    Vec sum[kBlockRows] = {};
#pragma GCC unroll 18
    for (int r = 0; r < kWindowRows; ++r) {
      Vec x = Load(rows[r] + i);
#pragma GCC unroll 8
      for (int k = 0; k < kBlockRows; ++k) {
        if (r >= k && r - k < kTaps) sum[k] += kWeights[r - k] * x;
      }
    }
#pragma GCC unroll 8
    for (int k = 0; k < kBlockRows; ++k) Store(out + k * stride + i, sum[k]);
  }
}

inline __attribute__((always_inline)) Vec FilterHorizontally(const float* row, int64_t channels) {
  Vec sum = {};
#pragma GCC unroll 11
  for (int t = 0; t < kTaps; ++t) sum += kWeights[t] * Load(row + t * channels);
  return sum;
}

// One row of the map, and of its derivatives by the filtered moments if kWithPartials.
template <bool kWithPartials>
inline __attribute__((always_inline)) void MapRow(const Strip& s, int row, int64_t channels) {
  const float* moments[kMoments] = {s.Filtered(0, row), s.Filtered(1, row), s.Filtered(2, row), s.Filtered(3, row)};
  float* partials = s.partials;
  int64_t length = s.size + 2 * s.halo;
  for (int64_t i = 0; i < length; i += kLanes) {
    Vec mean_a = FilterHorizontally(moments[0] + i, channels);
    Vec mean_b = FilterHorizontally(moments[1] + i, channels);
    Vec square = FilterHorizontally(moments[2] + i, channels);
    Vec product = FilterHorizontally(moments[3] + i, channels);
    Vec mean_product = mean_a * mean_b, mean_square = mean_a * mean_a + mean_b * mean_b;
    Vec luminance = 2.0f * mean_product + kC1, luminance_norm = mean_square + kC1;
    // Rounding can take a variance below zero, which matters when values are far above 1.
    Vec structure = 2.0f * (product - mean_product) + kC2, structure_norm = Max(square - mean_square, Vec{}) + kC2;
    Vec inverse = Reciprocal(luminance_norm * structure_norm);
    Vec map = luminance * structure * inverse;
    Store(s.map + i, map);
    if constexpr (kWithPartials) {
      Vec by_square = -map * inverse * luminance_norm;
      Vec by_product = 2.0f * luminance * inverse;
      Vec by_mean = 2.0f * (inverse * mean_b * (structure - luminance) -
                            map * inverse * mean_a * (structure_norm - luminance_norm));
      Store(partials + i, by_mean);
      Store(partials + s.stride + i, by_square);
      Store(partials + 2 * s.stride + i, by_product);
    }
  }
}

double SumRow(const float* values, int64_t length) {
  Vec sum = {};
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) sum += Load(values + i);
  double total = 0;
  for (; i < length; ++i) total += values[i];
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

// P filtered horizontally into the ring. P is 0 outside the image, where there is no map.
inline __attribute__((always_inline)) void RingRow(const Strip& s, int64_t slot, int64_t channels) {
  int64_t first = s.begin - s.halo;
  int64_t from = Larger(0, -first), to = Smaller(s.stride, s.row_floats - first);
  for (int p = 0; p < kPartials; ++p) {
    float* row = s.partials + p * s.stride;
    std::memset(row, 0, from * sizeof(float));
    std::memset(row + to, 0, (s.stride - to) * sizeof(float));
    float* out = s.Ring(p, slot);
    for (int64_t i = 0; i < s.size; i += kLanes) Store(out + i, FilterHorizontally(row + i, channels));
  }
}

// kBlockRows rows of the gradient from row y, of which those below row_end are written.
void GradientRows(const Strip& s, int64_t y, int64_t first_ring_row, int64_t row_end, float scale, float* gradient) {
  for (int p = 0; p < kPartials; ++p) {
    const float* rows[kWindowRows];
    for (int r = 0; r < kWindowRows; ++r) rows[r] = s.Ring(p, (y - kRadius + r - first_ring_row) % kRingRows);
    FilterVertically(rows, s.Filtered(p, 0), s.stride, s.size);
  }
  for (int k = 0; k < kBlockRows && y + k < row_end; ++k) {
    int64_t offset = (y + k) * s.row_floats + s.begin;
    const float *by_mean = s.Filtered(0, k), *by_square = s.Filtered(1, k), *by_product = s.Filtered(2, k);
    int64_t i = 0;
    for (; i + kLanes <= s.size; i += kLanes) {
      Vec a = Load(s.a + offset + i), b = Load(s.b + offset + i);
      Store(gradient + offset + i,
            scale * (Load(by_mean + i) + 2.0f * a * Load(by_square + i) + b * Load(by_product + i)));
    }
    for (; i < s.size; ++i) {
      gradient[offset + i] =
          scale * (by_mean[i] + 2.0f * s.a[offset + i] * by_square[i] + s.b[offset + i] * by_product[i]);
    }
  }
}

template <bool kWithGradient>
inline __attribute__((always_inline)) void RunStrip(const Strip& s, int64_t row_begin, int64_t row_end,
                                                    int64_t channels, float scale, double* row_sums,
                                                    float* gradient) {
  const int64_t first = kWithGradient ? row_begin - kRadius : row_begin;  // first row of the map that is needed
  const int64_t last = kWithGradient ? row_end + kRadius : row_end;       // one past the last
  const int64_t first_raw = first - kRadius;
  for (int64_t r = 0; r < 2 * kRadius; ++r) LoadRow(s, first_raw + r, r);
  int64_t next_gradient = row_begin;
  for (int64_t y0 = first; y0 < last; y0 += kBlockRows) {
    const int64_t window = y0 - first;  // of the window's first row, counted from first_raw
    for (int64_t r = 2 * kRadius; r < kWindowRows; ++r) {
      LoadRow(s, first_raw + window + r, (window + r) % kWindowRows);
    }
    for (int m = 0; m < kMoments; ++m) {
      const float* rows[kWindowRows];
      for (int r = 0; r < kWindowRows; ++r) rows[r] = s.Raw(m, (window + r) % kWindowRows);
      FilterVertically(rows, s.Filtered(m, 0), s.stride, s.stride);
    }
    for (int k = 0; k < kBlockRows && y0 + k < last; ++k) {
      const int64_t y = y0 + k, slot = (y - first) % kRingRows;
      if (y >= 0 && y < s.height) {
        MapRow<kWithGradient>(s, k, channels);
        if (y >= row_begin && y < row_end) row_sums[y] += SumRow(s.map + s.halo, s.size);
        if constexpr (kWithGradient) RingRow(s, slot, channels);
      } else {
        for (int p = 0; p < kPartials; ++p) std::memset(s.Ring(p, slot), 0, s.stride * sizeof(float));
      }
    }
    if constexpr (kWithGradient) {
      // Rows past `last` hold older values; they reach only rows past row_end, which are not written.
      const int64_t available = y0 + kBlockRows;
      while (next_gradient < row_end && (available >= next_gradient + kBlockRows + kRadius || available >= last)) {
        GradientRows(s, next_gradient, first, row_end, scale, gradient);
        next_gradient += kBlockRows;
      }
    }
  }
}

int64_t Stride(int64_t channels) { return RoundUp(kStrip + 4 * kRadius * channels) + 2 * kLanes; }

}  // namespace

int64_t SsimScratchFloats(int64_t channels) {
  return Stride(channels) * (kMoments * (kWindowRows + kBlockRows) + kPartials * (1 + kRingRows) + 1) + kLanes;
}

void SsimRows(const float* a, const float* b, int64_t height, int64_t width, int64_t channels, int64_t row_begin,
              int64_t row_end, float scale, float* scratch, double* row_sums, float* gradient) {
  Strip s;
  s.a = a;
  s.b = b;
  s.height = height;
  s.row_floats = width * channels;
  s.channels = channels;
  s.halo = kRadius * channels;
  s.stride = Stride(channels);
  std::memset(scratch, 0, SsimScratchFloats(channels) * sizeof(float));
  constexpr uintptr_t kAlignment = sizeof(Vec);
  s.raw = (float*)(((uintptr_t)scratch + kAlignment - 1) / kAlignment * kAlignment);
  s.filtered = s.raw + kMoments * kWindowRows * s.stride;
  s.partials = s.filtered + kMoments * kBlockRows * s.stride;
  s.map = s.partials + kPartials * s.stride;
  s.ring = s.map + s.stride;
  for (int64_t y = row_begin; y < row_end; ++y) row_sums[y] = 0;
  // Strips of equal size; which columns they have depends on the image only.
  int64_t num_strips = (s.row_floats + kStrip - 1) / kStrip;
  int64_t size = Smaller(RoundUp((s.row_floats + num_strips - 1) / num_strips), kStrip);
  for (s.begin = 0; s.begin < s.row_floats; s.begin += size) {
    s.size = Smaller(size, s.row_floats - s.begin);
    // Colour images get the channel count as a constant: the loads then need no address arithmetic.
    if (gradient && channels == 3) {
      RunStrip<true>(s, row_begin, row_end, 3, scale, row_sums, gradient);
    } else if (gradient) {
      RunStrip<true>(s, row_begin, row_end, channels, scale, row_sums, gradient);
    } else if (channels == 3) {
      RunStrip<false>(s, row_begin, row_end, 3, scale, row_sums, gradient);
    } else {
      RunStrip<false>(s, row_begin, row_end, channels, scale, row_sums, gradient);
    }
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
