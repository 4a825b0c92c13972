#include "common/dispatch.h"

#include <cstdlib>
#include <cstring>

namespace cosurfgs {
namespace {

Variant Detect() {
#if defined(__x86_64__)
  const char* forced = std::getenv("COSURFGS_INSTRUCTION_SET");
  bool only_baseline = forced && std::strcmp(forced, "baseline") == 0;
  bool at_most_v3 = forced && std::strcmp(forced, "v3") == 0;
  __builtin_cpu_init();
  bool has_v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("bmi2");
  bool has_v4 = has_v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd");
  if (only_baseline) return Variant::kBaseline;
  if (has_v4 && !at_most_v3) return Variant::kV4;
  if (has_v3) return Variant::kV3;
#endif
  return Variant::kBaseline;
}

}  // namespace

Variant ActiveVariant() {
  static const Variant variant = Detect();
  return variant;
}

}  // namespace cosurfgs

extern "C" const char* cosurfgs_instruction_set() {
  switch (cosurfgs::ActiveVariant()) {
    case cosurfgs::Variant::kV4:
      return "x86-64-v4";
    case cosurfgs::Variant::kV3:
      return "x86-64-v3";
    default:
      return "baseline";
  }
}
