// The kernel of losses/patch_ncc.h, vectorised over the samples of one patch; compiled once per
// instruction set.
//
// A sample at q = patch centre + (dx, dy) lies in the neighbour at p = warp q + epipole w(q), w =
// planes . ray(q) its inverse depth. Both are linear in (dx, dy), so a patch costs two starting
// points and two slopes, then per sample a division, four gathered values and some 40
// multiply-adds. Nothing from the C++ library is used here (see losses/photometric_kernels.cc).

#include "losses/patch_ncc.h"

#include <cmath>

#include "common/vec.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

constexpr int kMaxSamples = (2 * kMaxPatchRadius + 1) * (2 * kMaxPatchRadius + 1);
constexpr int kMaxVecs = (kMaxSamples + kLanes - 1) / kLanes;

inline Vec Gather(const float* base, IntVec index) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
  return _mm512_i32gather_ps((__m512i)index, base, 4);
#elif defined(__AVX2__)
  return _mm256_i32gather_ps(base, (__m256i)index, 4);
#else
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = base[index[i]];
  return v;
#endif
}

inline float Sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

// Positions of the samples in the patch; those past the end repeat the last one and weigh nothing.
struct Samples {
  int count, vecs;
  Vec dx[kMaxVecs], dy[kMaxVecs], weight[kMaxVecs];
  Vec drawn_x[kMaxVecs], drawn_y[kMaxVecs];  // steps in the map of what is drawn
  IntVec index[kMaxVecs];

  Samples(int radius, int64_t width, int dilation) {
    const int side = 2 * radius + 1;
    count = side * side;
    vecs = (count + kLanes - 1) / kLanes;
    for (int i = 0; i < vecs * kLanes; ++i) {
      const int k = i < count ? i : count - 1;
      const int x = k % side - radius, y = k / side - radius;
      dx[i / kLanes][i % kLanes] = float(x);
      dy[i / kLanes][i % kLanes] = float(y);
      drawn_x[i / kLanes][i % kLanes] = float(x / dilation);
      drawn_y[i / kLanes][i % kLanes] = float(y / dilation);
      weight[i / kLanes][i % kLanes] = i < count ? 1.0f : 0.0f;
      index[i / kLanes][i % kLanes] = int32_t(y * width + x);
    }
  }
};

// The plane of the depth in the middle of a patch: its inverse depth there, what that gains by a
// pixel to the right and by one downwards, and the focal length over sigma and the inverse of the
// plane's distance from the camera.
struct DrawnPlane {
  float here = 0, gain_x = 0, gain_y = 0, scale = 0;

  DrawnPlane() = default;
  DrawnPlane(const PatchCall& c, int64_t px, int64_t py) {
    const int64_t row = (py - c.origin_y) / c.dilation, column = (px - c.origin_x) / c.dilation;
    const int64_t reach = kSlopeReach > c.dilation ? kSlopeReach / c.dilation : 1;
    const float apart = float(reach * c.dilation);
    here = Inverse(c, row, column);
    const float bend = kMaxBend * here / c.fx * apart;
    gain_x = Slope(Inverse(c, row, column + reach) - here, here - Inverse(c, row, column - reach),
                   bend) /
             apart;
    gain_y = Slope(Inverse(c, row + reach, column) - here, here - Inverse(c, row - reach, column),
                   bend) /
             apart;
    const float tilt_x = gain_x * c.fx, tilt_y = gain_y * c.fy;
    const float along =
        here - gain_x * (float(px) + 0.5f - c.cx) - gain_y * (float(py) + 0.5f - c.cy);
    const float length = std::sqrt(tilt_x * tilt_x + tilt_y * tilt_y + along * along);
    scale = c.fx / (c.plane_sigma * (length > 1e-30f ? length : 1e-30f));
  }

  static float Inverse(const PatchCall& c, int64_t row, int64_t column) {
    row = row < 0 ? 0 : row < c.depth_height ? row : c.depth_height - 1;
    column = column < 0 ? 0 : column < c.depth_width ? column : c.depth_width - 1;
    const float depth = c.depth[row * c.depth_width + column];
    return depth > 0 ? 1.0f / depth : 0.0f;
  }

  // Of both sides where they are of one surface, else of the one that is less steep.
  static float Slope(float ahead, float behind, float bend) {
    const float steep_ahead = std::fabs(ahead), steep_behind = std::fabs(behind);
    const float smaller = steep_ahead < steep_behind ? steep_ahead : steep_behind;
    if (std::fabs(ahead - behind) < smaller + bend) return 0.5f * (ahead + behind);
    return steep_ahead < steep_behind ? ahead : behind;
  }
};

// Square roots of the weights of samples: how near what is drawn there lies to the plane.
inline Vec RootWeight(const PatchCall& c, const Samples& s, int k, int64_t px, int64_t py,
                      const DrawnPlane& plane) {
  const Vec column = Min(Max(s.drawn_x[k] + float((px - c.origin_x) / c.dilation), Vec{}),
                         Splat(float(c.depth_width - 1)));
  const Vec line = Min(Max(s.drawn_y[k] + float((py - c.origin_y) / c.dilation), Vec{}),
                       Splat(float(c.depth_height - 1)));
  const IntVec at = __builtin_convertvector(line, IntVec) * int32_t(c.depth_width) +
                    __builtin_convertvector(column, IntVec);
  const Vec depth = Gather(c.depth, at);
  const Vec w = s.dx[k] * plane.gain_x + s.dy[k] * plane.gain_y + plane.here;
  const Vec apart = (depth * w - 1.0f) * plane.scale / Max(depth, Splat(1e-9f));
  return ExpMinusHalf(0.5f * apart * apart);
}

// One patch. Returns whether it lies inside.
bool Patch(const PatchCall& c, const Samples& s, int64_t px, int64_t py, const float* plane,
           float* score, float* gradient) {
  if (px < c.radius || py < c.radius || px + c.radius >= c.width || py + c.radius >= c.height)
    return false;
  const float x = float(px) + 0.5f, y = float(py) + 0.5f;
  const float ray_x = (x - c.cx) / c.fx, ray_y = (y - c.cy) / c.fy;
  const float w0 = plane[0] * ray_x + plane[1] * ray_y + plane[2];
  const float wx = plane[0] / c.fx, wy = plane[1] / c.fy;
  float start[3], slope_x[3], slope_y[3];
  for (int i = 0; i < 3; ++i) {
    start[i] = c.warp[3 * i] * x + c.warp[3 * i + 1] * y + c.warp[3 * i + 2] + c.epipole[i] * w0;
    slope_x[i] = c.warp[3 * i] + c.epipole[i] * wx;
    slope_y[i] = c.warp[3 * i + 1] + c.epipole[i] * wy;
  }
  const Vec last_x = Splat(float(c.neighbor_width - 1)),
            last_y = Splat(float(c.neighbor_height - 1));
  const float* own_center = c.gray + py * c.width + px;
  Vec own[kMaxVecs], other[kMaxVecs], grad_w[kMaxVecs], root[kMaxVecs];
  Vec own_sum = Vec{}, other_sum = Vec{}, weight_sum = Vec{};
  const bool is_weighed = c.plane_sigma > 0;
  const DrawnPlane drawn = is_weighed ? DrawnPlane(c, px, py) : DrawnPlane();
  for (int k = 0; k < s.vecs; ++k) {
    const Vec z = s.dx[k] * slope_x[2] + s.dy[k] * slope_y[2] + start[2];
    const Vec w = s.dx[k] * wx + s.dy[k] * wy + w0;
    const Vec inv_z = 1.0f / z;
    const Vec u = (s.dx[k] * slope_x[0] + s.dy[k] * slope_y[0] + start[0]) * inv_z;
    const Vec v = (s.dx[k] * slope_x[1] + s.dy[k] * slope_y[1] + start[1]) * inv_z;
    const Vec left = u - 0.5f, top = v - 0.5f;
    const Mask is_inside = And(And(And(LessEqual(Vec{}, left), LessEqual(left, last_x)),
                                   And(LessEqual(Vec{}, top), LessEqual(top, last_y))),
                               And(Less(Vec{}, z), Less(Vec{}, w)));
    if (Count(is_inside) != kLanes) return false;
    // The last pixel has no right neighbour: its value is reached from the left.
    const IntVec column = __builtin_convertvector(Min(left, last_x - 1.0f), IntVec);
    const IntVec line = __builtin_convertvector(Min(top, last_y - 1.0f), IntVec);
    const Vec fx = left - __builtin_convertvector(column, Vec),
              fy = top - __builtin_convertvector(line, Vec);
    const IntVec corner = line * int32_t(c.neighbor_width) + column;
    const Vec a = Gather(c.neighbor, corner), b = Gather(c.neighbor + 1, corner);
    const Vec d = Gather(c.neighbor + c.neighbor_width, corner),
              e = Gather(c.neighbor + c.neighbor_width + 1, corner);
    const Vec above = a + (b - a) * fx, below = d + (e - d) * fx;
    const Vec grad_u = (b - a) + ((e - d) - (b - a)) * fy, grad_v = below - above;
    own[k] = Gather(own_center, s.index[k]);
    other[k] = above + grad_v * fy;
    if (Count(LessEqual(Splat(kMinGray), other[k])) != kLanes) return false;
    grad_w[k] =
        (grad_u * (c.epipole[0] - u * c.epipole[2]) + grad_v * (c.epipole[1] - v * c.epipole[2])) *
        inv_z;
    root[k] = s.weight[k];
    if (is_weighed) root[k] *= RootWeight(c, s, k, px, py, drawn);
    const Vec weight = root[k] * root[k];
    weight_sum += weight;
    own_sum += own[k] * weight;
    other_sum += other[k] * weight;
  }
  const float total = is_weighed ? Sum(weight_sum) : float(s.count);
  if (is_weighed && !(total >= kMinPatchWeight)) return false;
  const float inv_count = 1.0f / total;
  const float own_mean = Sum(own_sum) * inv_count, other_mean = Sum(other_sum) * inv_count;
  Vec both = Vec{}, own_square = Vec{}, other_square = Vec{};
  for (int k = 0; k < s.vecs; ++k) {
    own[k] = (own[k] - own_mean) * root[k];
    other[k] = (other[k] - other_mean) * root[k];
    both += own[k] * other[k];
    own_square += own[k] * own[k];
    other_square += other[k] * other[k];
  }
  const float own_variance = Sum(own_square) * inv_count + c.noise_variance;
  const float other_variance = Sum(other_square) * inv_count + c.noise_variance;
  const float inv_norm = 1.0f / std::sqrt(own_variance * other_variance);
  const float ncc = Sum(both) * inv_count * inv_norm;
  // d ncc / d other = (own / norm - ncc other / other_variance) / count, times the weight, of which
  // one root is in own and other already; the means drop out, as both weighted sums are 0.
  const float a = inv_norm * inv_count, b = ncc / other_variance * inv_count;
  Vec grad_wx = Vec{}, grad_wy = Vec{}, by_w0 = Vec{};
  for (int k = 0; k < s.vecs; ++k) {
    const Vec g = (own[k] * a - other[k] * b) * grad_w[k] * root[k];
    by_w0 += g;
    grad_wx += g * s.dx[k];
    grad_wy += g * s.dy[k];
  }
  const float g0 = Sum(by_w0);
  *score = ncc;
  gradient[0] = g0 * ray_x + Sum(grad_wx) / c.fx;
  gradient[1] = g0 * ray_y + Sum(grad_wy) / c.fy;
  gradient[2] = g0;
  return true;
}

}  // namespace

void PatchRow(const PatchCall& call, int64_t row, const float* planes, float* score, bool* is_valid,
              float* gradient) {
  const Samples samples(call.radius, call.width, int(call.dilation));
  for (int64_t j = 0; j < call.columns; ++j) {
    score[j] = gradient[3 * j] = gradient[3 * j + 1] = gradient[3 * j + 2] = 0.0f;
    is_valid[j] =
        Patch(call, samples, call.offset_x + j * call.stride, call.offset_y + row * call.stride,
              planes + 3 * j, score + j, gradient + 3 * j);
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
