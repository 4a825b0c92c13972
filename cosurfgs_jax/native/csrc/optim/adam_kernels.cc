// The kernel of optim/adam.h; compiled once per instruction set. Memory decides its speed: 7
// streams, each once, and nothing of rows that are not alive. Nothing from the C++ library is used
// here: see losses/photometric_kernels.cc.

#include "optim/adam.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

void AdamRows(const AdamCall& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t row = call.row_floats;
  const float beta1 = call.beta1, beta2 = call.beta2, gain1 = call.gain1, gain2 = call.gain2,
              epsilon = call.epsilon;
  const float inverse_bias1 = call.inverse_bias1, inverse_bias2 = call.inverse_bias2;
  // What each element learns, and how fast: so that the loop over elements knows no rows.
  float *learns = scratch, *rates = scratch + kAdamRows * row;
  for (int64_t i = 0; i < kAdamRows * row; ++i) {
    learns[i] = call.learns[i % row];
    rates[i] = call.rates[i % row];
  }
  for (int64_t first = begin, last; first < end; first = last) {
    last = first + 1;
    if (!call.alive[first]) continue;
    while (last < end && last < first + kAdamRows && call.alive[last]) ++last;
    const int64_t count = (last - first) * row;
    const float* gradient = call.gradient + first * row;
    float *values = call.values + first * row, *mu = call.mu + first * row,
          *nu = call.nu + first * row;
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const float masked = learns[i] * gradient[i];
      const float first_moment = beta1 * mu[i] + gain1 * masked;
      const float second_moment = beta2 * nu[i] + gain2 * masked * masked;
      const float size = __builtin_sqrtf(second_moment * inverse_bias2) + epsilon;
      values[i] -= rates[i] * learns[i] * (first_moment * inverse_bias1 / size);
      mu[i] = first_moment;
      nu[i] = second_moment;
    }
  }
}

namespace {

// What optim.py calls the drift, where more steps were missed than its table has: all that count of
// those after step `last`.
float LongDrift(const CatchUpCall& call, int64_t last) {
  const float ratio = __builtin_expf(call.log_beta1 - 0.5f * call.log_beta2);
  float power = 1.0f, sum = 0.0f;
  for (int64_t j = 1; j < call.num_drift; ++j) {
    const float step = float(last + j);
    power *= ratio;
    sum += power * __builtin_sqrtf(1.0f - __builtin_expf(step * call.log_beta2)) /
           (1.0f - __builtin_expf(step * call.log_beta1));
  }
  return sum;
}

}  // namespace

void CatchUpRows(const CatchUpCall& call, int64_t begin, int64_t end) {
  const int64_t row = call.row_floats;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t missed = call.missed[i];
    if (!call.alive[i] || missed <= 0) continue;
    const float drift =
        missed < call.num_drift ? call.drift[missed] : LongDrift(call, call.count - missed);
    const float decay1 = __builtin_expf(float(missed) * call.log_beta1),
                decay2 = __builtin_expf(float(missed) * call.log_beta2);
    float *values = call.values + i * row, *mu = call.mu + i * row, *nu = call.nu + i * row;
#pragma GCC ivdep
    for (int64_t k = 0; k < row; ++k) {
      values[k] -= call.rates[k] * drift * (mu[k] / (__builtin_sqrtf(nu[k]) + call.epsilon));
      mu[k] *= decay1;
      nu[k] *= decay2;
    }
  }
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
