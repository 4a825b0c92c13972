// The operands and results of the photometric losses' custom call, the same for every platform:
// their checks and their binding.
#pragma once

#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace cosurfgs {

namespace ffi = xla::ffi;
using LossMap = ffi::Buffer<ffi::F32, 2>;
using LossMap3 = ffi::Buffer<ffi::F32, 3>;
using LossPhoto = ffi::Buffer<ffi::U8, 3>;
using LossMask = ffi::Buffer<ffi::PRED, 2>;
using LossValues = ffi::Buffer<ffi::F32, 1>;

struct PhotometricOperands {
  LossMap3 render;    // [H, W, 3], canonical colours
  LossMap alpha;      // [H, W]
  LossMap transform;  // [3, 4]
  LossPhoto photo;    // u8[H, W, 3 or 4]
  LossMask mask;      // [H, W], or of no element
};

// by_*: the derivatives of the first loss.
struct PhotometricResults {
  ffi::Result<LossValues> losses;  // [2]: the weighted sum, and the PSNR
  ffi::Result<LossMap3> grad_render;
  ffi::Result<LossMap> grad_alpha, grad_transform;
};

// Empty if all fit together.
inline std::string CheckOperands(const PhotometricOperands& in, PhotometricResults out) {
  const auto shape = in.photo.dimensions();
  const size_t size = size_t(shape[0] * shape[1]), mask_size = in.mask.element_count();
  const bool fits =
      size >= 1 && (shape[2] == 3 || shape[2] == 4) && in.render.element_count() == 3 * size &&
      in.render.dimensions()[2] == 3 && in.alpha.element_count() == size &&
      in.transform.element_count() == 12 && (mask_size == 0 || mask_size == size) &&
      out.losses->element_count() == 2 && out.grad_render->element_count() == 3 * size &&
      out.grad_alpha->element_count() == size && out.grad_transform->element_count() == 12;
  if (fits) return "";
  return "photometric_losses: expected a render [H,W,3], alpha [H,W], a transform [3,4], a "
         "photograph u8[H,W,3 or 4] and a mask "
         "[H,W] or of no element";
}

// Behind the contexts that a platform asks for.
template <class Binding>
auto BindPhotometricLosses(Binding&& contexts) {
  return std::move(contexts)
      .template Arg<LossMap3>()    // render
      .template Arg<LossMap>()     // alpha
      .template Arg<LossMap>()     // transform
      .template Arg<LossPhoto>()   // photo
      .template Arg<LossMask>()    // mask
      .template Ret<LossValues>()  // losses
      .template Ret<LossMap3>()    // by render
      .template Ret<LossMap>()     // by alpha
      .template Ret<LossMap>()     // by transform
      .template Attr<float>("color_weight")
      .template Attr<float>("ssim_weight")
      .template Attr<float>("light_weight");
}

}  // namespace cosurfgs
