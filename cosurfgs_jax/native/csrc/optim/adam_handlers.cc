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

// Which rows go together depends on nothing but the shape.
int64_t RowsPerTask(int64_t row_floats) {
  return std::max<int64_t>(1, kFloatsPerTask / std::max<int64_t>(row_floats, 1) / kAdamRows) *
         kAdamRows;
}

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
  const std::string error = CheckOperands({values, mu, nu, gradient, alive, rates, learns, count},
                                          {new_values, new_mu, new_nu});
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
  const int64_t rows_per_task = RowsPerTask(row_floats);
  Parallel parallel(pool);
  parallel.For((rows + rows_per_task - 1) / rows_per_task, [&](int64_t part) {
    Borrowed<AdamScratch> work;
    COSURFGS_DISPATCH(AdamRows, call, part * rows_per_task,
                      std::min(rows, (part + 1) * rows_per_task),
                      work->floats.Get(2 * kAdamRows * row_floats));
  });
  return ffi::Error::Success();
}

ffi::Error CatchUp(ffi::ThreadPool pool, AdamField values, AdamField mu, AdamField nu,
                   AdamFlags alive, AdamGaps missed, AdamRow rates, AdamRow drift, AdamCount count,
                   ffi::Result<AdamField> new_values, ffi::Result<AdamField> new_mu,
                   ffi::Result<AdamField> new_nu, float beta1, float beta2, float epsilon) {
  const int64_t rows = alive.element_count(), row_floats = rates.element_count();
  const size_t size = values.element_count();
  if (mu.element_count() != size || nu.element_count() != size ||
      int64_t(size) != rows * row_floats || int64_t(missed.element_count()) != rows ||
      drift.element_count() == 0 || new_values->element_count() != size ||
      new_mu->element_count() != size || new_nu->element_count() != size) {
    return ffi::Error::InvalidArgument(
        "catch_up: expected values and moments of N times R elements, alive and missed [N], rates "
        "[R], a drift, and results like values and moments");
  }
  CopyUnlessSame(values, new_values->typed_data());
  CopyUnlessSame(mu, new_mu->typed_data());
  CopyUnlessSame(nu, new_nu->typed_data());
  const CatchUpCall call{row_floats,
                         rates.typed_data(),
                         drift.typed_data(),
                         int64_t(drift.element_count()),
                         count.typed_data()[0],
                         alive.typed_data(),
                         missed.typed_data(),
                         new_values->typed_data(),
                         new_mu->typed_data(),
                         new_nu->typed_data(),
                         float(std::log(double(beta1))),
                         float(std::log(double(beta2))),
                         epsilon};
  const int64_t rows_per_task = RowsPerTask(row_floats);
  Parallel parallel(pool);
  parallel.For((rows + rows_per_task - 1) / rows_per_task, [&](int64_t part) {
    COSURFGS_DISPATCH(CatchUpRows, call, part * rows_per_task,
                      std::min(rows, (part + 1) * rows_per_task));
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsAdamCatchUp, cosurfgs::CatchUp,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<cosurfgs::AdamField>()  // values
                                  .Arg<cosurfgs::AdamField>()  // mu
                                  .Arg<cosurfgs::AdamField>()  // nu
                                  .Arg<cosurfgs::AdamFlags>()  // alive
                                  .Arg<cosurfgs::AdamGaps>()   // missed
                                  .Arg<cosurfgs::AdamRow>()    // rates
                                  .Arg<cosurfgs::AdamRow>()    // drift
                                  .Arg<cosurfgs::AdamCount>()  // count
                                  .Ret<cosurfgs::AdamField>()  // values
                                  .Ret<cosurfgs::AdamField>()  // mu
                                  .Ret<cosurfgs::AdamField>()  // nu
                                  .Attr<float>("beta1")
                                  .Attr<float>("beta2")
                                  .Attr<float>("epsilon"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsAdam, cosurfgs::Adam,
    cosurfgs::BindAdam(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
