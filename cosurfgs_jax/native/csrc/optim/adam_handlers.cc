// The XLA custom call for optim/adam.h on the CPU.

#include "optim/adam.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "optim/adam_operands.h"
#include "common/parallel_for.h"
#include "common/scratch.h"

namespace cosurfgs {
namespace {

constexpr int64_t kFloatsPerTask = 1 << 16;

struct AdamScratch {
  Scratch<float> floats;
};

// A result that XLA could not put where its operand is.
void CopyUnlessSame(const AdamField& from, float* to) {
  if (from.typed_data() != to)
    std::memcpy(to, from.typed_data(), from.element_count() * sizeof(float));
}

ffi::Error Adam(ffi::ThreadPool pool, AdamField values, AdamField mu, AdamField nu,
                AdamField gradient, AdamFlags alive, AdamRow rates, AdamRow learns, AdamCount count,
                ffi::Result<AdamField> new_values, ffi::Result<AdamField> new_mu,
                ffi::Result<AdamField> new_nu, float beta1, float beta2, float gain1, float gain2,
                float epsilon) {
  const std::string error = CheckOperands({values, mu, nu, gradient, alive, rates, learns, count});
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const int64_t rows = alive.element_count(), row_floats = rates.element_count();
  CopyUnlessSame(values, new_values->typed_data());
  CopyUnlessSame(mu, new_mu->typed_data());
  CopyUnlessSame(nu, new_nu->typed_data());
  const double steps = count.typed_data()[0];
  const AdamCall call{row_floats,
                      rates.typed_data(),
                      learns.typed_data(),
                      alive.typed_data(),
                      gradient.typed_data(),
                      new_values->typed_data(),
                      new_mu->typed_data(),
                      new_nu->typed_data(),
                      beta1,
                      beta2,
                      gain1,
                      gain2,
                      epsilon,
                      float(1 / (1 - std::pow(double(beta1), steps))),
                      float(1 / (1 - std::pow(double(beta2), steps)))};
  // Which rows go together depends on nothing but the shape.
  const int64_t rows_per_task =
      std::max<int64_t>(1, kFloatsPerTask / std::max<int64_t>(row_floats, 1) / kAdamRows) *
      kAdamRows;
  Parallel parallel(pool);
  parallel.For((rows + rows_per_task - 1) / rows_per_task, [&](int64_t part) {
    Borrowed<AdamScratch> work;
    COSURFGS_DISPATCH(AdamRows, call, part * rows_per_task,
                      std::min(rows, (part + 1) * rows_per_task),
                      work->floats.Get(2 * kAdamRows * row_floats));
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsAdam, cosurfgs::Adam,
    cosurfgs::BindAdam(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
