// Which compiled variant of the kernels this machine runs.
#pragma once

namespace cosurfgs {

enum class Variant { kBaseline, kV3, kV4 };

// The best variant that was compiled and that this processor has.
// COSURFGS_INSTRUCTION_SET=baseline|v3|v4 forces a lower one.
Variant ActiveVariant();

// Calls `function` of the active variant's namespace. It must be declared in each namespace (see
// COSURFGS_DECLARE_VARIANTS).
#if defined(__x86_64__)
#define COSURFGS_DISPATCH(function, ...)                                                           \
  (::cosurfgs::ActiveVariant() == ::cosurfgs::Variant::kV4 ? ::cosurfgs::v4::function(__VA_ARGS__) \
   : ::cosurfgs::ActiveVariant() == ::cosurfgs::Variant::kV3                                       \
       ? ::cosurfgs::v3::function(__VA_ARGS__)                                                     \
       : ::cosurfgs::baseline::function(__VA_ARGS__))
#define COSURFGS_DECLARE_VARIANTS(...) \
  namespace baseline {                 \
  __VA_ARGS__                          \
  }                                    \
  namespace v3 {                       \
  __VA_ARGS__                          \
  }                                    \
  namespace v4 {                       \
  __VA_ARGS__                          \
  }
#else
#define COSURFGS_DISPATCH(function, ...) ::cosurfgs::baseline::function(__VA_ARGS__)
#define COSURFGS_DECLARE_VARIANTS(...) \
  namespace baseline {                 \
  __VA_ARGS__                          \
  }
#endif

}  // namespace cosurfgs
