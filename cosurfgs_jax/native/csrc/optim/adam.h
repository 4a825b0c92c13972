// One step of Adam on one field of the surfels, for a range of rows. optim.py defines it.
#pragma once

#include <cstdint>

#include "common/dispatch.h"

namespace cosurfgs {

struct AdamCall {
  int64_t row_floats;  // of one surfel
  const float *rates,
      *learns;              // f32[row_floats]: learning rate, and 0 where an element stands still
  const bool* alive;        // bool[rows], false = the row is not touched
  const float* gradient;    // f32[rows, row_floats], as are the next
  float *values, *mu, *nu;  // changed in place
  float beta1, beta2, gain1, gain2, epsilon;  // gain = 1 - beta, rounded once
  float inverse_bias1, inverse_bias2;         // 1 / (1 - beta^count)
};

// How many rows are done at once.
constexpr int64_t kAdamRows = 64;

// Brings rows up to date that had no gradient in their last steps.
struct CatchUpCall {
  int64_t row_floats;          // of one surfel
  const float *rates, *drift;  // f32[row_floats]; f32[num_drift]: by steps missed, see optim.py
  int64_t num_drift;
  int64_t count;            // steps done, those missed included
  const bool* alive;        // bool[rows], false = the row is not touched
  const int32_t* missed;    // i32[rows]: steps without a gradient, 0 or more
  float *values, *mu, *nu;  // f32[rows, row_floats]; changed in place
  float log_beta1, log_beta2, epsilon;
};

// AdamRows: the step of rows [begin, end), with scratch f32[2 kAdamRows row_floats].
COSURFGS_DECLARE_VARIANTS(void AdamRows(const AdamCall& call, int64_t begin, int64_t end,
                                        float* scratch);
                          void CatchUpRows(const CatchUpCall& call, int64_t begin, int64_t end);)

}  // namespace cosurfgs
