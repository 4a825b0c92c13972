// From the operands of the custom calls of a training step to their bodies, for any device.
#pragma once

#include <cmath>

#include "optim/adam_operands.h"
#include "gpu/adam.h"
#include "gpu/photometric.h"
#include "losses/photometric_operands.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// device.Finish() says whether all went well, as an ffi::Error.
template <class Device>
ffi::Error PhotometricLosses(Device& device, LossMap3 render, LossMap alpha, LossMap transform,
                             LossPhoto photo, LossMask mask, ffi::Result<LossValues> losses,
                             ffi::Result<LossMap3> grad_render, ffi::Result<LossMap> grad_alpha,
                             ffi::Result<LossMap> grad_transform, float color_weight,
                             float ssim_weight, float light_weight) {
  const std::string error = CheckOperands({render, alpha, transform, photo, mask},
                                          {losses, grad_render, grad_alpha, grad_transform});
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const auto shape = photo.dimensions();
  if (shape[0] * (shape[1] + kSsimRun) > kMaxLossPixels) {
    return ffi::Error::InvalidArgument("photometric_losses: expected at most " +
                                       std::to_string(kMaxLossPixels) + " pixels on a GPU, got " +
                                       std::to_string(shape[0]) + "x" + std::to_string(shape[1]) +
                                       "; raise data.downscale");
  }
  PhotometricArgs args{};
  args.height = int(shape[0]), args.width = int(shape[1]), args.channels = int(shape[2]);
  args.render = render.typed_data(), args.alpha = alpha.typed_data(),
  args.transform = transform.typed_data();
  args.photo = photo.typed_data();
  args.mask = mask.element_count() ? mask.typed_data() : nullptr;
  args.color_weight = color_weight, args.ssim_weight = ssim_weight,
  args.light_weight = light_weight;
  args.losses = losses->typed_data(), args.grad_render = grad_render->typed_data();
  args.grad_alpha = grad_alpha->typed_data(), args.grad_transform = grad_transform->typed_data();
  RunPhotometric(device, args);
  return device.Finish();
}

template <class Device>
ffi::Error Adam(Device& device, AdamField values, AdamField mu, AdamField nu, AdamField gradient,
                AdamFlags alive, AdamRow rates, AdamRow learns, AdamCount count,
                ffi::Result<AdamField> new_values, ffi::Result<AdamField> new_mu,
                ffi::Result<AdamField> new_nu, float beta1, float beta2, float gain1, float gain2,
                float epsilon) {
  const std::string error = CheckOperands({values, mu, nu, gradient, alive, rates, learns, count},
                                          {new_values, new_mu, new_nu});
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  // A result that XLA could not put where its operand is.
  const auto copy_unless_same = [&](const AdamField& from, float* to) {
    if (from.typed_data() != to)
      device.Copy(to, from.typed_data(), from.element_count() * sizeof(float));
    return to;
  };
  AdamArgs args{};
  args.size = int64_t(values.element_count()), args.row_floats = int(rates.element_count());
  args.rates = rates.typed_data(), args.learns = learns.typed_data(),
  args.alive = alive.typed_data();
  args.count = count.typed_data(), args.gradient = gradient.typed_data();
  args.values = copy_unless_same(values, new_values->typed_data());
  args.mu = copy_unless_same(mu, new_mu->typed_data());
  args.nu = copy_unless_same(nu, new_nu->typed_data());
  args.beta1 = beta1, args.beta2 = beta2, args.gain1 = gain1, args.gain2 = gain2,
  args.epsilon = epsilon;
  args.log_beta1 = float(std::log(double(beta1))), args.log_beta2 = float(std::log(double(beta2)));
  args.is_aligned = true;
  for (const float* data :
       {args.gradient, static_cast<const float*>(args.values), static_cast<const float*>(args.mu),
        static_cast<const float*>(args.nu)}) {
    args.is_aligned &= reinterpret_cast<uintptr_t>(data) % sizeof(Floats<AdamFour::kNum>) == 0;
  }
  RunAdam(device, args);
  return device.Finish();
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
