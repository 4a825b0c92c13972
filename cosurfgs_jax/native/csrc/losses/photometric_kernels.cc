// The photometric losses and their derivatives in one pass over a band of rows; compiled once per
// instruction set.
//
// SSIM costs most. Its map needs four filtered images, not five, because only the sum of the two
// variances enters:
//   F(a), F(b), F(a a + b b), F(a b).
// The gradient filters three more: d = F(P0) + 2 a F(P1) + b F(P2), where P are the map's
// derivatives by the first, third and fourth. Images are cut into column strips so that the rows in
// flight stay in the second-level cache. Within a strip, eight rows are filtered vertically at once
// (18 loads for 88 multiply-adds), then each row horizontally by unaligned loads. The multiply-adds
// alone (154 per value) of 1000 x 751 x 3 would take 3 ms on one core with AVX-512 and 6 with AVX2.
// What is done pixel by pixel joins where the gradient of a row comes out, while its strip is in
// the cache.
//
// Nothing from the C++ library is used here: a template instantiated in the AVX-512 variant could
// be the copy that the linker keeps for everyone.

#include "losses/photometric.h"

#include "losses/ssim_window.h"
#include "common/vec.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

constexpr int kRadius = kSsimRadius;
constexpr int kTaps = kSsimTaps;
constexpr float kWeights[kTaps] = {SsimWeight(0), SsimWeight(1), SsimWeight(2), SsimWeight(3),
                                   SsimWeight(4), SsimWeight(5), SsimWeight(6), SsimWeight(7),
                                   SsimWeight(8), SsimWeight(9), SsimWeight(10)};
constexpr float kC1 = kSsimC1;
constexpr float kC2 = kSsimC2;
constexpr float kUnit = kPhotoUnit;

constexpr int kChannels = 3;
constexpr int64_t kHalo = kRadius * kChannels;  // floats that the window reaches to the side

constexpr int kBlockRows = 8;                          // rows filtered vertically at once
constexpr int kWindowRows = kBlockRows + 2 * kRadius;  // input rows for them
constexpr int kRingRows = 24;  // rows of P kept: three blocks cover a window at any phase
constexpr int64_t kBlock = kChannels * kLanes;  // floats of the pixels that are finished at once
constexpr int64_t kStrip = 768;                 // floats of a strip's core: 0.4 MB of scratch
constexpr int kMoments = 4;
constexpr int kPartials = 3;
static_assert(kStrip % kBlock == 0, "a strip holds whole pixels");

inline int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t kStride = (kStrip + 4 * kHalo + kLanes - 1) / kLanes * kLanes + 2 * kLanes;
inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Larger(int64_t a, int64_t b) { return a > b ? a : b; }

// One strip: image columns (interleaved floats) [begin, begin + size) and its rows of scratch. Rows
// of moments start at column begin - 2 kHalo, of P and the map at begin - kHalo, of filtered P at
// begin.
struct Strip {
  const float* a;  // the render, or what stands for it where pixels do not count
  const float* b;  // the photograph
  int64_t height, row_floats;
  int64_t begin, size;
  float* raw;       // [kMoments][kWindowRows][kStride]: a, b, a a + b b, a b
  float* filtered;  // [kMoments][kBlockRows][kStride]
  float* partials;  // [kPartials][kStride]
  float* map;       // [kStride]
  float* ring;      // [kPartials][kRingRows][kStride]

  float* Raw(int moment, int64_t slot) const {
    return raw + (moment * kWindowRows + slot) * kStride;
  }
  float* Filtered(int moment, int row) const {
    return filtered + (moment * kBlockRows + row) * kStride;
  }
  float* Ring(int partial, int64_t slot) const {
    return ring + (partial * kRingRows + slot) * kStride;
  }
};

// A row of raw moments, zero outside the image.
void LoadRow(const Strip& s, int64_t y, int64_t slot) {
  float* rows[kMoments] = {s.Raw(0, slot), s.Raw(1, slot), s.Raw(2, slot), s.Raw(3, slot)};
  if (y < 0 || y >= s.height) {
    for (float* row : rows) std::memset(row, 0, kStride * sizeof(float));
    return;
  }
  int64_t first = s.begin - 2 * kHalo;
  int64_t from = Larger(0, -first), to = Smaller(s.size + 4 * kHalo, s.row_floats - first);
  for (int image = 0; image < 2; ++image) {
    std::memset(rows[image], 0, from * sizeof(float));
    std::memcpy(rows[image] + from, (image ? s.b : s.a) + y * s.row_floats + first + from,
                (to - from) * sizeof(float));
    std::memset(rows[image] + to, 0, (kStride - to) * sizeof(float));
  }
  for (int64_t i = 0; i < kStride; i += kLanes) {
    Vec a = Load(rows[0] + i), b = Load(rows[1] + i);
    Store(rows[2] + i, a * a + b * b);
    Store(rows[3] + i, a * b);
  }
}

// out[k] = sum over t of weight[t] rows[k + t], for kBlockRows rows.
void FilterVertically(const float* const* rows, float* out, int64_t length) {
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
    for (int k = 0; k < kBlockRows; ++k) Store(out + k * kStride + i, sum[k]);
  }
}

inline Vec FilterHorizontally(const float* row) {
  Vec sum = {};
#pragma GCC unroll 11
  for (int t = 0; t < kTaps; ++t) sum += kWeights[t] * Load(row + t * kChannels);
  return sum;
}

// One row of the map and of its derivatives by the filtered moments.
void MapRow(const Strip& s, int row) {
  const float* moments[kMoments] = {s.Filtered(0, row), s.Filtered(1, row), s.Filtered(2, row),
                                    s.Filtered(3, row)};
  float* partials = s.partials;
  int64_t length = s.size + 2 * kHalo;
  for (int64_t i = 0; i < length; i += kLanes) {
    Vec mean_a = FilterHorizontally(moments[0] + i);
    Vec mean_b = FilterHorizontally(moments[1] + i);
    Vec square = FilterHorizontally(moments[2] + i);
    Vec product = FilterHorizontally(moments[3] + i);
    Vec mean_product = mean_a * mean_b, mean_square = mean_a * mean_a + mean_b * mean_b;
    Vec luminance = 2.0f * mean_product + kC1, luminance_norm = mean_square + kC1;
    // Rounding can take a variance below zero, which matters when values are far above 1.
    Vec structure = 2.0f * (product - mean_product) + kC2,
        structure_norm = Max(square - mean_square, Vec{}) + kC2;
    Vec inverse = Reciprocal(luminance_norm * structure_norm);
    Vec map = luminance * structure * inverse;
    Store(s.map + i, map);
    Vec grad_square = -map * inverse * luminance_norm;
    Vec grad_product = 2.0f * luminance * inverse;
    Vec grad_mean = 2.0f * (inverse * mean_b * (structure - luminance) -
                            map * inverse * mean_a * (structure_norm - luminance_norm));
    Store(partials + i, grad_mean);
    Store(partials + kStride + i, grad_square);
    Store(partials + 2 * kStride + i, grad_product);
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
void RingRow(const Strip& s, int64_t slot) {
  int64_t first = s.begin - kHalo;
  int64_t from = Larger(0, -first), to = Smaller(kStride, s.row_floats - first);
  for (int p = 0; p < kPartials; ++p) {
    float* row = s.partials + p * kStride;
    std::memset(row, 0, from * sizeof(float));
    std::memset(row + to, 0, (kStride - to) * sizeof(float));
    float* out = s.Ring(p, slot);
    for (int64_t i = 0; i < s.size; i += kLanes) Store(out + i, FilterHorizontally(row + i));
  }
}

// Sums over pixels that FinishBlock adds to, lane by lane: the derivatives by the transform, then
// these.
constexpr int kDifference = 12, kSquared = 13, kLight = 14, kSums = 16;

// kLanes pixels, of which SSIM's map has the derivative grad_mean + 2 a grad_square + b
// grad_product.
inline void FinishBlock(const PhotometricCall& c, const float* render, const float* a,
                        const float* b, Vec weight, Vec alpha, const float* grad_mean,
                        const float* grad_square, const float* grad_product, float* grad_render,
                        Vec* sums) {
  Vec gradients[kChannels];
  for (int q = 0; q < kChannels; ++q) {
    const int64_t i = q * kLanes;
    gradients[q] = Load(grad_mean + i) + 2.0f * Load(a + i) * Load(grad_square + i) +
                   Load(b + i) * Load(grad_product + i);
  }
  Vec color[kChannels], target[kChannels], grad_color[kChannels];
  Separate(Load(render), Load(render + kLanes), Load(render + 2 * kLanes), color);
  Separate(Load(b), Load(b + kLanes), Load(b + 2 * kLanes), target);
  Separate(gradients[0], gradients[1], gradients[2], grad_color);
  for (int k = 0; k < kChannels; ++k) grad_color[k] *= -c.ssim_scale * weight;
  const Vec step = c.color_scale * weight, none = {};
  const Mask counts = Less(Splat(0.5f), weight);
#pragma GCC unroll 3
  for (int k = 0; k < kChannels; ++k) {
    const float* m = c.transform + 4 * k;
    const Vec exposed = m[0] * color[0] + m[1] * color[1] + m[2] * color[2] + m[3];
    const Vec difference = exposed - target[k],
              clipped = Min(Max(exposed, none), Splat(1.0f)) - target[k];
    const Vec grad =
        Select(Less(none, difference), step, Select(Less(difference, none), -step, none));
    sums[kDifference] += weight * Abs(difference);
    sums[kSquared] += Keep(counts, clipped * clipped);
#pragma GCC unroll 3
    for (int j = 0; j < kChannels; ++j) {
      grad_color[j] += m[j] * grad;
      sums[4 * k + j] += grad * color[j];
    }
    sums[4 * k + 3] += grad;
  }
  const Vec light = 1.0f - alpha;
  sums[kLight] += weight * light * light;
  Vec joined[kChannels];
  Join(grad_color[0], grad_color[1], grad_color[2], joined);
  for (int q = 0; q < kChannels; ++q) Store(grad_render + q * kLanes, joined[q]);
}

void AddSums(Vec* lanes, PhotometricRowSums* sums) {
  float totals[kSums];
  for (int i = 0; i < kSums; i += kLanes) Store(totals + i, ReduceLanes(lanes + i));
  for (int i = 0; i < 12; ++i) sums->grad_transform[i] += totals[i];
  sums->difference += totals[kDifference];
  sums->squared += totals[kSquared];
  sums->light += totals[kLight];
}

// The pixels of a strip's row y, whose filtered derivatives are row `row` of `filtered`.
void FinishRow(const PhotometricCall& c, const Strip& s, int64_t y, int row,
               PhotometricRowSums* sums) {
  const float* gradients[kPartials] = {s.Filtered(0, row), s.Filtered(1, row), s.Filtered(2, row)};
  Vec lanes[kSums] = {};
  for (int64_t i = 0; i < s.size; i += kBlock) {
    const int64_t first = y * s.row_floats + s.begin + i, pixel = first / kChannels;
    const int64_t count = Smaller(kLanes, (s.size - i) / kChannels);
    const float *grad_mean = gradients[0] + i, *grad_square = gradients[1] + i,
                *grad_product = gradients[2] + i;
    if (count == kLanes) {
      const Vec weight = c.has_weights() ? Load(c.weights + pixel) : Splat(1.0f);
      FinishBlock(c, c.render + first, s.a + first, s.b + first, weight, Load(c.alpha + pixel),
                  grad_mean, grad_square, grad_product, c.grad_render + first, lanes);
      Store(c.grad_alpha + pixel, -2.0f * c.light_scale * weight * (1.0f - Load(c.alpha + pixel)));
      continue;
    }
    float render[kBlock] = {}, a[kBlock] = {}, b[kBlock] = {}, grad_render[kBlock],
          weights[kLanes] = {}, alpha[kLanes] = {};
    for (int64_t k = 0; k < count * kChannels; ++k)
      render[k] = c.render[first + k], a[k] = s.a[first + k], b[k] = s.b[first + k];
    for (int64_t k = 0; k < count; ++k) {
      weights[k] = c.has_weights() ? c.weights[pixel + k] : 1.0f;
      alpha[k] = c.alpha[pixel + k];
      c.grad_alpha[pixel + k] = -2.0f * c.light_scale * weights[k] * (1.0f - alpha[k]);
    }
    FinishBlock(c, render, a, b, Load(weights), Load(alpha), grad_mean, grad_square, grad_product,
                grad_render, lanes);
    std::memcpy(c.grad_render + first, grad_render, count * kChannels * sizeof(float));
  }
  AddSums(lanes, sums);
}

// kBlockRows rows from row y, of which those below row_end are finished.
void FinishRows(const PhotometricCall& c, const Strip& s, int64_t y, int64_t first_ring_row,
                int64_t row_end, PhotometricRowSums* sums) {
  for (int p = 0; p < kPartials; ++p) {
    const float* rows[kWindowRows];
    for (int r = 0; r < kWindowRows; ++r)
      rows[r] = s.Ring(p, (y - kRadius + r - first_ring_row) % kRingRows);
    FilterVertically(rows, s.Filtered(p, 0), s.size);
  }
  for (int k = 0; k < kBlockRows && y + k < row_end; ++k) FinishRow(c, s, y + k, k, &sums[y + k]);
}

void RunStrip(const PhotometricCall& c, const Strip& s, int64_t row_begin, int64_t row_end,
              PhotometricRowSums* sums) {
  const int64_t first = row_begin - kRadius;  // first row of the map that is needed
  const int64_t last = row_end + kRadius;     // one past the last
  const int64_t first_raw = first - kRadius;
  for (int64_t r = 0; r < 2 * kRadius; ++r) LoadRow(s, first_raw + r, r);
  int64_t next = row_begin;
  for (int64_t y0 = first; y0 < last; y0 += kBlockRows) {
    const int64_t window = y0 - first;  // of the window's first row, counted from first_raw
    for (int64_t r = 2 * kRadius; r < kWindowRows; ++r) {
      LoadRow(s, first_raw + window + r, (window + r) % kWindowRows);
    }
    for (int m = 0; m < kMoments; ++m) {
      const float* rows[kWindowRows];
      for (int r = 0; r < kWindowRows; ++r) rows[r] = s.Raw(m, (window + r) % kWindowRows);
      FilterVertically(rows, s.Filtered(m, 0), kStride);
    }
    for (int k = 0; k < kBlockRows && y0 + k < last; ++k) {
      const int64_t y = y0 + k, slot = (y - first) % kRingRows;
      if (y >= 0 && y < s.height) {
        MapRow(s, k);
        if (y >= row_begin && y < row_end) sums[y].similarity += SumRow(s.map + kHalo, s.size);
        RingRow(s, slot);
      } else {
        for (int p = 0; p < kPartials; ++p)
          std::memset(s.Ring(p, slot), 0, kStride * sizeof(float));
      }
    }
    // Rows past `last` hold older values; they reach only rows past row_end, which are not
    // finished.
    const int64_t available = y0 + kBlockRows;
    while (next < row_end && (available >= next + kBlockRows + kRadius || available >= last)) {
      FinishRows(c, s, next, first, row_end, sums);
      next += kBlockRows;
    }
  }
}

}  // namespace

int64_t PhotometricScratchFloats() {
  return kStride * (kMoments * (kWindowRows + kBlockRows) + kPartials * (1 + kRingRows) + 1) +
         kLanes;
}

void PrepareRow(const PhotometricCall& call, int64_t y, PhotometricRowSums* sums) {
  const int64_t width = call.width, first = y * width;
  const uint8_t* photo = call.photo + first * call.channels;
  float* target = call.target + kChannels * first;
  *sums = {};
  if (call.channels == kChannels) {
    for (int64_t i = 0; i < kChannels * width; ++i) target[i] = kUnit * photo[i];
  } else {
    for (int64_t x = 0; x < width; ++x) {
      for (int k = 0; k < kChannels; ++k) target[kChannels * x + k] = kUnit * photo[4 * x + k];
    }
  }
  if (!call.has_weights()) {
    sums->weight = sums->num_counted = width;
    return;
  }
  float* weights = call.weights + first;
  if (call.channels == kChannels) {
    for (int64_t x = 0; x < width; ++x) weights[x] = 1.0f;
  } else {
    for (int64_t x = 0; x < width; ++x) weights[x] = kUnit * photo[4 * x + kChannels];
  }
  if (call.mask) {
    for (int64_t x = 0; x < width; ++x) weights[x] = call.mask[first + x] ? weights[x] : 0.0f;
  }
  const float* render = call.render + kChannels * first;
  float* blended = call.blended + kChannels * first;
  int64_t num_counted = 0;
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t i = kChannels * x; i < kChannels * (x + 1); ++i) {
      blended[i] = weights[x] * render[i] + (1.0f - weights[x]) * target[i];
    }
    num_counted += weights[x] > 0.5f;
  }
  sums->weight = SumRow(weights, width);
  sums->num_counted = num_counted;
}

void PhotometricRows(const PhotometricCall& call, int64_t row_begin, int64_t row_end,
                     float* scratch, PhotometricRowSums* sums) {
  Strip s;
  s.a = call.has_weights() ? call.blended : call.render;
  s.b = call.target;
  s.height = call.height;
  s.row_floats = call.width * kChannels;
  std::memset(scratch, 0, PhotometricScratchFloats() * sizeof(float));
  constexpr uintptr_t kAlignment = sizeof(Vec);
  s.raw = (float*)(((uintptr_t)scratch + kAlignment - 1) / kAlignment * kAlignment);
  s.filtered = s.raw + kMoments * kWindowRows * kStride;
  s.partials = s.filtered + kMoments * kBlockRows * kStride;
  s.map = s.partials + kPartials * kStride;
  s.ring = s.map + kStride;
  // Strips of equal size and whole pixels; which columns they have depends on the image only.
  const int64_t num_strips = (s.row_floats + kStrip - 1) / kStrip;
  const int64_t size = RoundUp((s.row_floats + num_strips - 1) / num_strips, kBlock);
  for (s.begin = 0; s.begin < s.row_floats; s.begin += size) {
    s.size = Smaller(size, s.row_floats - s.begin);
    RunStrip(call, s, row_begin, row_end, sums);
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
