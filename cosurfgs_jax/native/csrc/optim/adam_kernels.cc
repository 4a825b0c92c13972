// The kernel of optim/adam.h; compiled once per instruction set. Memory decides its speed: 7
// streams, each once.

#include "optim/adam.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

void AdamRows(const AdamCall& call, int64_t begin, int64_t end, float* scratch) {
  const int64_t row = call.row_floats;
  const float beta1 = call.beta1, beta2 = call.beta2, gain1 = call.gain1, gain2 = call.gain2,
              epsilon = call.epsilon;
  const float inverse_bias1 = call.inverse_bias1, inverse_bias2 = call.inverse_bias2;
  for (int64_t first = begin; first < end; first += kAdamRows) {
    const int64_t count = (first + kAdamRows < end ? kAdamRows : end - first) * row;
    // What each element learns, then how fast: so that the loop over elements knows no rows.
    float *learns = scratch, *rates = scratch + kAdamRows * row;
    for (int64_t i = 0; i < count; i += row) {
      const float is_alive = call.alive[first + i / row] ? 1.0f : 0.0f;
      for (int64_t k = 0; k < row; ++k) learns[i + k] = is_alive * call.learns[k];
    }
    if (first == begin) {
      for (int64_t i = 0; i < kAdamRows * row; ++i) rates[i] = call.rates[i % row];
    }
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

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
