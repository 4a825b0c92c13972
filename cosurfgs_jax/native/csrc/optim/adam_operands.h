// The operands and results of Adam's custom call, the same for every platform: their checks and
// their binding.
#pragma once

#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace cosurfgs {

namespace ffi = xla::ffi;
using AdamField =
    ffi::Buffer<ffi::F32>;  // [N] and what a surfel has; axes of length 1 may stand in front
using AdamRow = ffi::Buffer<ffi::F32, 1>;
using AdamFlags = ffi::Buffer<ffi::PRED, 1>;
using AdamCount = ffi::Buffer<ffi::S32, 0>;
using AdamGaps = ffi::Buffer<ffi::S32, 1>;

struct AdamOperands {
  AdamField values, mu, nu, gradient;
  AdamFlags alive;        // [N]
  AdamRow rates, learns;  // [R]: learning rate, and 0 where an element stands still
  AdamCount count;        // of this step, from 1
};

// Where XLA can, in the memory of the operands.
struct AdamResults {
  ffi::Result<AdamField> values, mu, nu;
};

struct AdamAttributes {
  float beta1, beta2, gain1, gain2, epsilon;  // gain = 1 - beta, rounded once
};

// Empty if all fit together.
inline std::string CheckOperands(const AdamOperands& in, AdamResults out) {
  const size_t size = in.values.element_count(), row_floats = in.rates.element_count();
  const bool fits =
      in.mu.element_count() == size && in.nu.element_count() == size &&
      in.gradient.element_count() == size && size == in.alive.element_count() * row_floats &&
      in.learns.element_count() == row_floats && out.values->element_count() == size &&
      out.mu->element_count() == size && out.nu->element_count() == size;
  if (fits) return "";
  return "adam: expected values, moments and gradient of N times R elements, alive [N], rates and "
         "learns [R], and results like values and moments";
}

// Behind the contexts that a platform asks for.
template <class Binding>
auto BindAdam(Binding&& contexts) {
  return std::move(contexts)
      .template Arg<AdamField>()  // values
      .template Arg<AdamField>()  // mu
      .template Arg<AdamField>()  // nu
      .template Arg<AdamField>()  // gradient
      .template Arg<AdamFlags>()  // alive
      .template Arg<AdamRow>()    // rates
      .template Arg<AdamRow>()    // learns
      .template Arg<AdamCount>()  // count
      .template Ret<AdamField>()  // values
      .template Ret<AdamField>()  // mu
      .template Ret<AdamField>()  // nu
      .template Attr<float>("beta1")
      .template Attr<float>("beta2")
      .template Attr<float>("gain1")
      .template Attr<float>("gain2")
      .template Attr<float>("epsilon");
}

}  // namespace cosurfgs
