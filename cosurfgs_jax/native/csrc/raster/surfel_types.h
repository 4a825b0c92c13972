// Plain structures of the surfel mathematics (raster/surfel_math.h), and the one list of a surfel's
// fields in C++. No code of its own, so that files compiled for different instruction sets can
// share them.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace cosurfgs {

constexpr int kMaxSh = 16;

// The arrays of the fields of N surfels as JAX lays them out: those that types.SurfelParams says
// are drawn, or the gradients with respect to them.
template <class T>
struct SurfelArrays {
  T *means, *quats, *log_scales, *logit_opacities;
  T* sh;  // [N, K, 3], of which a call may use fewer coefficients than are stored
};

// The parameters of N surfels.
struct Surfels : SurfelArrays<const float> {
  const bool* alive;
  int64_t num_surfels, num_sh;  // num_sh = K, coefficients stored per surfel
  int sh_degree;                // coefficients used: (sh_degree + 1)^2 <= K
};

// Where the surfel gradients are added up.
struct SurfelGradients : SurfelArrays<float> {
  float* probe;
};

// The numbers of one surfel, or of a vector of surfels.
template <class F>
struct SurfelParams {
  F mean[3], quat[4], log_scale[2], logit_opacity[1];
  F sh[kMaxSh * 3];  // coefficient-major, RGB inside
};

// Visits all fields but sh, in the order of types.SurfelParams: visit(name, array, numbers), where
// `numbers` is an array as long as the field has numbers per surfel. What loads, checks, stores or
// binds the fields does it through this list.
template <class Arrays, class F, class Visit>
COSURFGS_FN void ForEachField(Arrays& arrays, SurfelParams<F>& numbers, Visit visit) {
  visit("means", arrays.means, numbers.mean);
  visit("quats", arrays.quats, numbers.quat);
  visit("log_scales", arrays.log_scales, numbers.log_scale);
  visit("logit_opacities", arrays.logit_opacities, numbers.logit_opacity);
}

// A camera. rotation is row-major, camera from world.
struct View {
  float rotation[9];
  float translation[3];
  float center[3];       // the camera centre in the world
  float fx, fy, cx, cy;  // pixels; of an orthographic camera fx and fy are pixels per world length
  int width, height;
  float near;
  float low_pass;  // sigma2 = low_pass * squared pixel distance; 2 is a filter of sqrt(1/2) px
  bool is_orthographic;  // rays are parallel to the camera's z axis; there is no backward pass
};

// What a pixel needs to know of a surfel; also the layout of the gradient with respect to it.
template <class F>
struct Projected {
  F center[2];  // pixels
  F a[3], b[3], c;
  F m2[3];  // camera z of the point (u, v) is u m2[0] + v m2[1] + m2[2]
  F opacity;
  F color[3];
  F normal[3];  // world, towards the camera
  F plane_distance;
};

template <class F>
struct Bounds {
  F x0, x1, y0, y1;  // pixels, not clipped to the image
  F min_z;           // no hit of the surfel within its cut-off is nearer
};

// Quantities of the projection that the backward pass uses again.
template <class F>
struct Pose {
  F inv_quat_norm, q[4];
  F axes[3][3];  // tangents and (unflipped) normal, world
  F scale[2];
  F u[3], v[3], p[3];  // scaled tangents and centre, camera
  F ray[3];  // what divides pixels: (u, v, 1) . ray is camera z, or 1 where rays are parallel
  F inv_z, ex, ey;
  F n0[2], n1[2];
  F sign;  // of the normal
  F direction[3], inv_distance;
};

// Gradients with respect to the camera of one surfel: rotation (row-major) and translation.
template <class F>
struct CameraGradient {
  F rotation[9], translation[3];
};

}  // namespace cosurfgs
