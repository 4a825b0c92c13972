// The XLA custom call for adam.h on the CPU.

#include "adam.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "parallel_for.h"
#include "workspace.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cosurfgs {
namespace {

using Field = ffi::Buffer<ffi::F32>;  // [N] and what a surfel has; axes of length 1 may stand in front
using Row = ffi::Buffer<ffi::F32, 1>;
using Flags = ffi::Buffer<ffi::PRED, 1>;
using Count = ffi::Buffer<ffi::S32, 0>;

constexpr int64_t kFloatsAtOnce = 1 << 16;

struct AdamWorkspace {
  Scratch<float> floats;
};

// A result that XLA could not put where its operand is.
void CopyUnlessSame(const Field& from, float* to) {
  if (from.typed_data() != to) std::memcpy(to, from.typed_data(), from.element_count() * sizeof(float));
}

ffi::Error Adam(ffi::ThreadPool pool, Field values, Field mu, Field nu, Field gradient, Flags alive, Row rates, Row learns,
                Count count, ffi::Result<Field> new_values, ffi::Result<Field> new_mu, ffi::Result<Field> new_nu, float beta1,
                float beta2, float gain1, float gain2, float epsilon) {
  const int64_t rows = alive.element_count(), row_floats = rates.element_count();
  const size_t size = values.element_count();
  if (mu.element_count() != size || nu.element_count() != size || gradient.element_count() != size ||
      int64_t(size) != rows * row_floats || learns.element_count() != rates.element_count()) {
    return ffi::Error::InvalidArgument(
        "adam: expected values, moments and gradient of N times R elements, alive [N], rates and learns [R]");
  }
  CopyUnlessSame(values, new_values->typed_data());
  CopyUnlessSame(mu, new_mu->typed_data());
  CopyUnlessSame(nu, new_nu->typed_data());
  const double steps = count.typed_data()[0];
  const AdamCall call{row_floats, rates.typed_data(), learns.typed_data(), alive.typed_data(), gradient.typed_data(),
                      new_values->typed_data(), new_mu->typed_data(), new_nu->typed_data(), beta1, beta2, gain1,
                      gain2, epsilon, float(1 / (1 - std::pow(double(beta1), steps))), float(1 / (1 - std::pow(double(beta2), steps)))};
  // Which rows go together depends on nothing but the shape.
  const int64_t at_once = std::max<int64_t>(1, kFloatsAtOnce / std::max<int64_t>(row_floats, 1) / kAdamRows) * kAdamRows;
  Parallel parallel(pool);
  parallel.For((rows + at_once - 1) / at_once, [&](int64_t part) {
    Borrowed<AdamWorkspace> work;
    COSURFGS_DISPATCH(AdamRows, call, part * at_once, std::min(rows, (part + 1) * at_once),
                      work->floats.Get(2 * kAdamRows * row_floats));
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsAdam, cosurfgs::Adam,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Field>()
                                  .Arg<cosurfgs::Field>()
                                  .Arg<cosurfgs::Field>()
                                  .Arg<cosurfgs::Field>()
                                  .Arg<cosurfgs::Flags>()
                                  .Arg<cosurfgs::Row>()
                                  .Arg<cosurfgs::Row>()
                                  .Arg<cosurfgs::Count>()
                                  .Ret<cosurfgs::Field>()
                                  .Ret<cosurfgs::Field>()
                                  .Ret<cosurfgs::Field>()
                                  .Attr<float>("beta1")
                              .Attr<float>("beta2")
                              .Attr<float>("gain1")
                              .Attr<float>("gain2")
                              .Attr<float>("epsilon"));
