// The mathematics of one surfel in one view: from its parameters to the numbers that a pixel needs,
// and the backward pass.
//
// Templated on the real type F, so that one implementation serves floats (GPU threads, host tests)
// and vectors of surfels (CPU). F needs + - * /, and the including file must have declared Sqrt,
// Exp, Abs, Max, Reciprocal, Splat(float), Select(Less(a, b), x, y) and And(LessEqual(a, b), ...)
// for it in the namespace COSURFGS_VARIANT (common/vec.h and common/scalar.h do). Everything lives
// in that namespace: code compiled for one instruction set must never be linked in place of
// another's.
//
// Source: the ray transform of 2DGS (Huang et al. 2024). Ours: everything is relative to the
// projected centre (cx, cy) of the surfel. With U, V the scaled tangents and P the centre in camera
// space, e = principal point - (cx, cy) and
//   N0 = (fx U.x + ex U.z, fx V.x + ex V.z, 0), N1 = (fy U.y + ey U.z, fy V.y + ey V.z, 0), M2 =
//   (U.z, V.z, P.z),
// the intersection at pixel (cx + dx, cy + dy) is p = dx A + dy B + (0, 0, C), u = p.x / p.z, v =
// p.y / p.z, where
//   A = N1 x M2, B = M2 x N0, C = (N0 x N1).z.
// Seven numbers instead of nine, and no cancellation between large pixel coordinates.
//
// An orthographic camera divides pixels by 1 instead of camera z: the same with (0, 0, 1) for M2 in
// all of the above (`ray`), while the depth of a hit stays u U.z + v V.z + P.z.
#pragma once

#include "common/constants.h"
#include "common/host_device.h"
#include "raster/surfel_types.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

template <class F>
COSURFGS_FN F Dot3(const F* a, const F* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// out = R v, with R row-major, camera from world.
template <class F>
COSURFGS_FN void Rotate(const float* r, const F* v, F* out) {
  for (int i = 0; i < 3; ++i) out[i] = v[0] * r[3 * i] + v[1] * r[3 * i + 1] + v[2] * r[3 * i + 2];
}
template <class F>
COSURFGS_FN void RotateTransposed(const float* r, const F* v, F* out) {
  for (int j = 0; j < 3; ++j) out[j] = v[0] * r[j] + v[1] * r[3 + j] + v[2] * r[6 + j];
}

// Real spherical harmonics with the signs of 3DGS files; direction d has length 1.
template <class F>
COSURFGS_FN void ShBasis(int degree, const F* d, F* basis) {
  const F x = d[0], y = d[1], z = d[2];
  basis[0] = x * 0.0f + 0.28209479177387814f;
  if (degree < 1) return;
  basis[1] = y * -0.4886025119029199f;
  basis[2] = z * 0.4886025119029199f;
  basis[3] = x * -0.4886025119029199f;
  if (degree < 2) return;
  const F xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  basis[4] = xy * 1.0925484305920792f;
  basis[5] = yz * -1.0925484305920792f;
  basis[6] = (zz * 2.0f - xx - yy) * 0.31539156525252005f;
  basis[7] = xz * -1.0925484305920792f;
  basis[8] = (xx - yy) * 0.5462742152960396f;
  if (degree < 3) return;
  basis[9] = y * (xx * 3.0f - yy) * -0.5900435899266435f;
  basis[10] = xy * z * 2.890611442640554f;
  basis[11] = y * (zz * 4.0f - xx - yy) * -0.4570457994644658f;
  basis[12] = z * (zz * 2.0f - xx * 3.0f - yy * 3.0f) * 0.3731763325901154f;
  basis[13] = x * (zz * 4.0f - xx - yy) * -0.4570457994644658f;
  basis[14] = z * (xx - yy) * 1.445305721320277f;
  basis[15] = x * (xx - yy * 3.0f) * -0.5900435899266435f;
}

// grad_d = sum_k g[k] d basis[k] / d d, with d taken as free.
template <class F>
COSURFGS_FN void ShBasisVjp(int degree, const F* d, const F* g, F* grad_d) {
  const F x = d[0], y = d[1], z = d[2];
  F gx = x * 0.0f, gy = gx, gz = gx;
  if (degree >= 1) {
    gy = gy + g[1] * -0.4886025119029199f;
    gz = gz + g[2] * 0.4886025119029199f;
    gx = gx + g[3] * -0.4886025119029199f;
  }
  if (degree >= 2) {
    const float c = 1.0925484305920792f, e = 0.31539156525252005f, f = 0.5462742152960396f;
    gx = gx + g[4] * y * c - g[6] * x * (2.0f * e) - g[7] * z * c + g[8] * x * (2.0f * f);
    gy = gy + g[4] * x * c - g[5] * z * c - g[6] * y * (2.0f * e) - g[8] * y * (2.0f * f);
    gz = gz - g[5] * y * c + g[6] * z * (4.0f * e) - g[7] * x * c;
  }
  if (degree >= 3) {
    const float c9 = -0.5900435899266435f, c10 = 2.890611442640554f, c11 = -0.4570457994644658f;
    const float c12 = 0.3731763325901154f, c14 = 1.445305721320277f;
    const F xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
    gx = gx + g[9] * xy * (6.0f * c9) + g[10] * yz * c10 - g[11] * xy * (2.0f * c11) -
         g[12] * xz * (6.0f * c12) + g[13] * (zz * 4.0f - xx * 3.0f - yy) * c11 +
         g[14] * xz * (2.0f * c14) + g[15] * (xx - yy) * (3.0f * c9);
    gy = gy + g[9] * (xx - yy) * (3.0f * c9) + g[10] * xz * c10 +
         g[11] * (zz * 4.0f - xx - yy * 3.0f) * c11 - g[12] * yz * (6.0f * c12) -
         g[13] * xy * (2.0f * c11) - g[14] * yz * (2.0f * c14) - g[15] * xy * (6.0f * c9);
    gz = gz + g[10] * xy * c10 + g[11] * yz * (8.0f * c11) +
         g[12] * (zz * 2.0f - xx - yy) * (3.0f * c12) + g[13] * xz * (8.0f * c11) +
         g[14] * (xx - yy) * c14;
  }
  grad_d[0] = gx;
  grad_d[1] = gy;
  grad_d[2] = gz;
}

// Whether all numbers but the colour's are finite and sane (reference.py, _is_valid).
template <class F>
COSURFGS_FN auto IsValidShape(const SurfelParams<F>& s) {
  F sum{};  // 0, or NaN as soon as one value is not finite
  F length{}, norm2{};
  for (int i = 0; i < 3; ++i) {
    sum += s.mean[i] * 0.0f;
    length = Max(Abs(s.mean[i]), length);
  }
  for (int i = 0; i < 4; ++i) norm2 += s.quat[i] * s.quat[i];
  sum += norm2 * 0.0f;
  for (int i = 0; i < 2; ++i) {
    sum += s.log_scale[i] * 0.0f;
    length = Max(Exp(s.log_scale[i]), length);
  }
  const auto is_shape = And(And(LessEqual(sum, F{}), LessEqual(Splat(kMinQuat2), norm2)),
                            LessEqual(length, Splat(kMaxLength)));
  return And(is_shape, LessEqual(Abs(s.logit_opacity[0]), Splat(kMaxValue)));
}

// Whether the first `num_sh` numbers of the colour are.
template <class F>
COSURFGS_FN auto IsValidColor(const SurfelParams<F>& s, int num_sh) {
  F color2{};
  COSURFGS_UNROLL
  for (int i = 0; i < num_sh; ++i) color2 += s.sh[i] * s.sh[i];
  return LessEqual(color2, Splat(kMaxValue * kMaxValue));
}

template <class F>
COSURFGS_FN void ComputePose(const SurfelParams<F>& s, const View& view, Pose<F>& o) {
  const F norm2 =
      s.quat[0] * s.quat[0] + s.quat[1] * s.quat[1] + s.quat[2] * s.quat[2] + s.quat[3] * s.quat[3];
  o.inv_quat_norm = Reciprocal(Sqrt(norm2));
  for (int i = 0; i < 4; ++i) o.q[i] = s.quat[i] * o.inv_quat_norm;
  const F w = o.q[0], x = o.q[1], y = o.q[2], z = o.q[3];
  o.axes[0][0] = 1.0f - (y * y + z * z) * 2.0f;
  o.axes[0][1] = (x * y + w * z) * 2.0f;
  o.axes[0][2] = (x * z - w * y) * 2.0f;
  o.axes[1][0] = (x * y - w * z) * 2.0f;
  o.axes[1][1] = 1.0f - (x * x + z * z) * 2.0f;
  o.axes[1][2] = (y * z + w * x) * 2.0f;
  o.axes[2][0] = (x * z + w * y) * 2.0f;
  o.axes[2][1] = (y * z - w * x) * 2.0f;
  o.axes[2][2] = 1.0f - (x * x + y * y) * 2.0f;
  Rotate(view.rotation, o.axes[0], o.u);
  Rotate(view.rotation, o.axes[1], o.v);
  Rotate(view.rotation, s.mean, o.p);
  for (int i = 0; i < 2; ++i) o.scale[i] = Exp(s.log_scale[i]);
  for (int i = 0; i < 3; ++i) {
    o.u[i] = o.u[i] * o.scale[0];
    o.v[i] = o.v[i] * o.scale[1];
    o.p[i] = o.p[i] + view.translation[i];
  }
  const F zero = o.p[2] * 0.0f;
  o.ray[0] = view.is_orthographic ? zero : o.u[2];
  o.ray[1] = view.is_orthographic ? zero : o.v[2];
  o.ray[2] = view.is_orthographic ? zero + 1.0f : o.p[2];
  o.inv_z = Reciprocal(o.ray[2]);
  o.ex = o.p[0] * o.inv_z * -view.fx;
  o.ey = o.p[1] * o.inv_z * -view.fy;
  o.n0[0] = o.u[0] * view.fx + o.ex * o.ray[0];
  o.n0[1] = o.v[0] * view.fx + o.ex * o.ray[1];
  o.n1[0] = o.u[1] * view.fy + o.ey * o.ray[0];
  o.n1[1] = o.v[1] * view.fy + o.ey * o.ray[1];
  F to_surfel[3];
  for (int i = 0; i < 3; ++i) {
    to_surfel[i] = view.is_orthographic ? zero + view.rotation[6 + i] : s.mean[i] - view.center[i];
  }
  const F facing = Dot3(o.axes[2], to_surfel);
  const F one = facing * 0.0f + 1.0f;
  o.sign = Select(Less(facing * 0.0f, facing), -one, one);
  o.inv_distance = Reciprocal(Sqrt(Dot3(to_surfel, to_surfel)));
  for (int i = 0; i < 3; ++i) o.direction[i] = to_surfel[i] * o.inv_distance;
}

// What a pixel needs but the colour, which alone depends on the spherical harmonics.
template <class F>
COSURFGS_FN void ProjectShape(const SurfelParams<F>& s, const View& view, const Pose<F>& o,
                              Projected<F>& out) {
  out.center[0] = view.cx - o.ex;
  out.center[1] = view.cy - o.ey;
  out.a[0] = o.n1[1] * o.ray[2];
  out.a[1] = -o.n1[0] * o.ray[2];
  out.a[2] = o.n1[0] * o.ray[1] - o.n1[1] * o.ray[0];
  out.b[0] = -o.ray[2] * o.n0[1];
  out.b[1] = o.ray[2] * o.n0[0];
  out.b[2] = o.ray[0] * o.n0[1] - o.ray[1] * o.n0[0];
  out.c = o.n0[0] * o.n1[1] - o.n0[1] * o.n1[0];
  out.m2[0] = o.u[2];
  out.m2[1] = o.v[2];
  out.m2[2] = o.p[2];
  out.opacity = Reciprocal(Exp(-s.logit_opacity[0]) + 1.0f);
  for (int i = 0; i < 3; ++i) out.normal[i] = o.axes[2][i] * o.sign;
  F normal_camera[3];
  Rotate(view.rotation, out.normal, normal_camera);
  out.plane_distance = -Dot3(normal_camera, o.p);
}

template <class F>
COSURFGS_FN void ProjectColor(const SurfelParams<F>& s, int sh_degree, const Pose<F>& o,
                              Projected<F>& out) {
  F basis[kMaxSh];
  ShBasis(sh_degree, o.direction, basis);
  for (int channel = 0; channel < 3; ++channel) {
    F value = basis[0] * s.sh[channel] + 0.5f;
    for (int k = 1; k < (sh_degree + 1) * (sh_degree + 1); ++k)
      value = value + basis[k] * s.sh[3 * k + channel];
    out.color[channel] = Select(Less(value * 0.0f, value), value, value * 0.0f);
  }
}

// The box of everything within `cutoff` (sigma at which alpha falls below kMinAlpha). A disc that
// is not wholly in front of the camera has no such box: it gets one that covers every pixel.
template <class F>
COSURFGS_FN void ComputeBounds(const View& view, const Pose<F>& o, const Projected<F>& s, F cutoff,
                               Bounds<F>& out) {
  const F z = o.ray[2];
  const F denominator = cutoff * (o.ray[0] * o.ray[0] + o.ray[1] * o.ray[1]) - z * z;
  const F inv = Reciprocal(denominator);
  const F low_pass = Sqrt(cutoff * (1.0f / view.low_pass)) + kBoxMargin;
  const F* n[2] = {o.n0, o.n1};
  F low[2], high[2];
  const auto is_whole = Less(denominator, z * z * -1e-3f);
  for (int i = 0; i < 2; ++i) {
    const F middle = cutoff * (n[i][0] * o.ray[0] + n[i][1] * o.ray[1]) * inv;
    const F half2 = middle * middle - cutoff * (n[i][0] * n[i][0] + n[i][1] * n[i][1]) * inv;
    const F half =
        Sqrt(Select(Less(half2 * 0.0f, half2), half2, half2 * 0.0f)) * 1.0001f + kBoxMargin;
    const F disc_low = middle - half, disc_high = middle + half;
    const F huge = z * 0.0f + 1e9f;
    low[i] = Select(is_whole, Select(Less(disc_low, -low_pass), disc_low, -low_pass), -huge) +
             s.center[i];
    high[i] = Select(is_whole, Select(Less(low_pass, disc_high), disc_high, low_pass), huge) +
              s.center[i];
  }
  out.x0 = low[0];
  out.x1 = high[0];
  out.y0 = low[1];
  out.y1 = high[1];
  const F reach2 = cutoff * (o.u[2] * o.u[2] + o.v[2] * o.v[2]);
  out.min_z = o.p[2] - Sqrt(reach2) * 1.0001f;
}

// The backward pass, for perspective cameras: from `g`, the gradient with respect to every field of
// Projected, to the parameters and the camera. A colour that ProjectColor clamped to 0 takes no
// gradient.
template <class F>
COSURFGS_FN void ProjectVjp(const SurfelParams<F>& s, const View& view, int sh_degree,
                            const Pose<F>& o, const Projected<F>& fwd, const Projected<F>& g,
                            SurfelParams<F>& out, CameraGradient<F>& camera) {
  const F z = o.p[2];
  const F n0x = o.n0[0], n0y = o.n0[1], n1x = o.n1[0], n1y = o.n1[1], uz = o.u[2], vz = o.v[2];
  const F g_n1y = g.a[0] * z - g.a[2] * uz + g.c * n0x;
  const F g_n1x = g.a[2] * vz - g.a[1] * z - g.c * n0y;
  const F g_n0y = g.b[2] * uz - g.b[0] * z - g.c * n1x;
  const F g_n0x = g.b[1] * z - g.b[2] * vz + g.c * n1y;
  F g_u[3], g_v[3], g_p[3];
  g_u[0] = g_n0x * view.fx;
  g_v[0] = g_n0y * view.fx;
  g_u[1] = g_n1x * view.fy;
  g_v[1] = g_n1y * view.fy;
  g_u[2] = g.b[2] * n0y - g.a[2] * n1y + g.m2[0] + o.ex * g_n0x + o.ey * g_n1x;
  g_v[2] = g.a[2] * n1x - g.b[2] * n0x + g.m2[1] + o.ex * g_n0y + o.ey * g_n1y;
  const F g_ex = g_n0x * uz + g_n0y * vz - g.center[0];
  const F g_ey = g_n1x * uz + g_n1y * vz - g.center[1];
  g_p[0] = g_ex * o.inv_z * -view.fx;
  g_p[1] = g_ey * o.inv_z * -view.fy;
  g_p[2] = g.a[0] * n1y - g.a[1] * n1x - g.b[0] * n0y + g.b[1] * n0x + g.m2[2] -
           (o.ex * g_ex + o.ey * g_ey) * o.inv_z;

  F normal_camera[3], g_normal_camera[3], g_normal[3];
  Rotate(view.rotation, fwd.normal, normal_camera);
  for (int i = 0; i < 3; ++i) {
    g_normal_camera[i] = -g.plane_distance * o.p[i];
    g_p[i] = g_p[i] - g.plane_distance * normal_camera[i];
  }
  RotateTransposed(view.rotation, g_normal_camera, g_normal);
  for (int i = 0; i < 3; ++i) g_normal[i] = (g_normal[i] + g.normal[i]) * o.sign;

  // Scaled tangents: U = scale_u R t_u.
  F g_axes[3][3];
  RotateTransposed(view.rotation, g_u, g_axes[0]);
  RotateTransposed(view.rotation, g_v, g_axes[1]);
  RotateTransposed(view.rotation, g_p, out.mean);
  out.log_scale[0] = Dot3(g_u, o.u);
  out.log_scale[1] = Dot3(g_v, o.v);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      camera.rotation[3 * i + j] = g_u[i] * o.scale[0] * o.axes[0][j] +
                                   g_v[i] * o.scale[1] * o.axes[1][j] + g_p[i] * s.mean[j] +
                                   g_normal_camera[i] * fwd.normal[j];
    }
    camera.translation[i] = g_p[i];
  }
  for (int j = 0; j < 3; ++j) {
    g_axes[0][j] = g_axes[0][j] * o.scale[0];
    g_axes[1][j] = g_axes[1][j] * o.scale[1];
    g_axes[2][j] = g_normal[j];
  }

  // Colour: sum_k basis_k(direction) sh_k, direction = (mean - camera centre) / distance.
  F basis[kMaxSh], g_basis[kMaxSh], g_color[3];
  ShBasis(sh_degree, o.direction, basis);
  for (int c = 0; c < 3; ++c)
    g_color[c] = Select(Less(fwd.color[c] * 0.0f, fwd.color[c]), g.color[c], g.color[c] * 0.0f);
  for (int k = 0; k < (sh_degree + 1) * (sh_degree + 1); ++k) {
    g_basis[k] = Dot3(g_color, s.sh + 3 * k);
    for (int c = 0; c < 3; ++c) out.sh[3 * k + c] = basis[k] * g_color[c];
  }
  F g_direction[3];
  ShBasisVjp(sh_degree, o.direction, g_basis, g_direction);
  const F radial = Dot3(g_direction, o.direction);
  F g_offset[3];
  for (int i = 0; i < 3; ++i) {
    g_offset[i] = (g_direction[i] - radial * o.direction[i]) * o.inv_distance;
    out.mean[i] = out.mean[i] + g_offset[i];
  }
  // Camera centre = -R^T t, and its gradient is -g_offset.
  for (int i = 0; i < 3; ++i) {
    camera.translation[i] = camera.translation[i] + g_offset[0] * view.rotation[3 * i] +
                            g_offset[1] * view.rotation[3 * i + 1] +
                            g_offset[2] * view.rotation[3 * i + 2];
    for (int j = 0; j < 3; ++j) {
      camera.rotation[3 * i + j] = camera.rotation[3 * i + j] + g_offset[j] * view.translation[i];
    }
  }

  out.logit_opacity[0] = g.opacity * fwd.opacity * (1.0f - fwd.opacity);

  // Unit quaternion to axes, then through the normalisation.
  const F w = o.q[0], x = o.q[1], y = o.q[2], qz = o.q[3];
  const F(&a)[3][3] = g_axes;
  F g_q[4];
  g_q[0] =
      (qz * a[0][1] - y * a[0][2] - qz * a[1][0] + x * a[1][2] + y * a[2][0] - x * a[2][1]) * 2.0f;
  g_q[1] = (y * a[0][1] + qz * a[0][2] + y * a[1][0] - x * a[1][1] * 2.0f + w * a[1][2] +
            qz * a[2][0] - w * a[2][1] - x * a[2][2] * 2.0f) *
           2.0f;
  g_q[2] = (x * a[0][1] - y * a[0][0] * 2.0f - w * a[0][2] + x * a[1][0] + qz * a[1][2] +
            w * a[2][0] + qz * a[2][1] - y * a[2][2] * 2.0f) *
           2.0f;
  g_q[3] = (w * a[0][1] - qz * a[0][0] * 2.0f + x * a[0][2] - w * a[1][0] - qz * a[1][1] * 2.0f +
            y * a[1][2] + x * a[2][0] + y * a[2][1]) *
           2.0f;
  const F along = g_q[0] * w + g_q[1] * x + g_q[2] * y + g_q[3] * qz;
  for (int i = 0; i < 4; ++i) out.quat[i] = (g_q[i] - along * o.q[i]) * o.inv_quat_norm;
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
