// One step of Adam on one field of the surfels, as a body for a GPU (gpu/cuda_device.h says how it
// runs). The formulas are those of optim/adam_kernels.cc; optim.py defines them.
//
// Memory decides its speed: 28 bytes for a number that learns, none for one of a row that is not
// alive. In a band of spherical harmonics that waits, moments still decay: 8 bytes, and 8 more
// while they are not zero.
#pragma once

#include <math.h>

#include <cstdint>

#include "common/floats.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

struct AdamArgs {
  int64_t size;     // floats of the field
  int row_floats;   // of one surfel
  bool is_aligned;  // whether four floats can be loaded at once
  const float *rates,
      *learns;              // f32[row_floats]: learning rate, and 0 where an element stands still
  const bool* alive;        // bool[rows], false = the row is not touched
  const int32_t* count;     // of this step, from 1; in device memory, so that nobody waits for it
  const float* gradient;    // f32[rows, row_floats], as are the next
  float *values, *mu, *nu;  // changed in place
  float beta1, beta2, gain1, gain2, epsilon;  // gain = 1 - beta, rounded once
  float log_beta1, log_beta2;
};

// Four consecutive numbers, or what is left of them.
struct AdamFour {
  using Args = AdamArgs;
  static constexpr int kNum = 4;

  // 1 / (1 - beta^count). Not by a power, whose rounding the difference would magnify a thousand
  // times.
  COSURFGS_FN static float InverseBias(float count, float log_beta) {
    return -1.0f / expm1f(count * log_beta);
  }

  // A gradient of zero on numbers that stay.
  template <int kNumbers>
  COSURFGS_FN static void Decay(const Args& args, int64_t first, const bool* is_alive) {
    auto mu = Floats<kNumbers>::Load(args.mu + first), nu = Floats<kNumbers>::Load(args.nu + first);
    bool is_zero = true;
    COSURFGS_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      is_zero &= mu[i] == 0 && nu[i] == 0;
      mu[i] *= is_alive[i] ? args.beta1 : 1.0f;
      nu[i] *= is_alive[i] ? args.beta2 : 1.0f;
    }
    if (is_zero) return;
    mu.Store(args.mu + first);
    nu.Store(args.nu + first);
  }

  // place: of the first number in its row. It goes on with the next.
  template <int kNumbers>
  COSURFGS_FN static void Step(const Args& args, int64_t first, int64_t& row, int& place) {
    float learns[kNumbers], rates[kNumbers];
    bool is_alive[kNumbers], is_any_alive = false, is_learning = false;
    COSURFGS_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      is_alive[i] = args.alive[row];
      is_any_alive |= is_alive[i];
      learns[i] = is_alive[i] ? args.learns[place] : 0.0f;
      rates[i] = args.rates[place];
      is_learning |= learns[i] != 0;
      if (++place == args.row_floats) place = 0, ++row;
    }
    if (!is_any_alive) return;
    if (!is_learning) {
      Decay<kNumbers>(args, first, is_alive);
      return;
    }
    const auto gradient = Floats<kNumbers>::Load(args.gradient + first);
    auto mu = Floats<kNumbers>::Load(args.mu + first), nu = Floats<kNumbers>::Load(args.nu + first);
    auto values = Floats<kNumbers>::Load(args.values + first);
    const float count = float(*args.count);
    const float inverse_bias1 = InverseBias(count, args.log_beta1),
                inverse_bias2 = InverseBias(count, args.log_beta2);
    COSURFGS_UNROLL
    for (int i = 0; i < kNumbers; ++i) {
      if (!is_alive[i]) continue;
      const float masked = learns[i] * gradient[i];
      mu[i] = args.beta1 * mu[i] + args.gain1 * masked;
      nu[i] = args.beta2 * nu[i] + args.gain2 * masked * masked;
      const float size = sqrtf(nu[i] * inverse_bias2) + args.epsilon;
      values[i] -= rates[i] * learns[i] * (mu[i] * inverse_bias1 / size);
    }
    values.Store(args.values + first);
    mu.Store(args.mu + first);
    nu.Store(args.nu + first);
  }

  COSURFGS_FN static void Run(const Args& args, int64_t index) {
    int64_t first = index * kNum;
    // Divisions of 64 bits take four times as long.
    const bool is_small = first <= int64_t(UINT32_MAX);
    int64_t row =
        is_small ? int64_t(uint32_t(first) / uint32_t(args.row_floats)) : first / args.row_floats;
    int place = int(first - row * args.row_floats);
    if (args.is_aligned && first + kNum <= args.size) {
      Step<kNum>(args, first, row, place);
      return;
    }
    const int64_t end = first + kNum < args.size ? first + kNum : args.size;
    for (; first < end; ++first) Step<1>(args, first, row, place);
  }
};

template <class Device>
void RunAdam(Device& device, const AdamArgs& args) {
  device.template For<AdamFour>((args.size + AdamFour::kNum - 1) / AdamFour::kNum, args);
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
