// Four floats at a multiple of 16 bytes, loaded and stored in one access; or a single one.
#pragma once

#include "host_device.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

template <int kNum>
struct Floats {
  static_assert(kNum == 1 || kNum == 4, "what a GPU has accesses for");
  float values[kNum];

  COSURFGS_FN float& operator[](int i) { return values[i]; }
  COSURFGS_FN float operator[](int i) const { return values[i]; }

  COSURFGS_FN static Floats Load(const float* from) {
    Floats floats;
#if defined(__CUDA_ARCH__)
    // Of memcpy, and of a structure of our own, nvcc 13.0 makes an access for each float or byte.
    if constexpr (kNum == 4) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      floats[0] = four.x, floats[1] = four.y, floats[2] = four.z, floats[3] = four.w;
    } else {
      floats[0] = *from;
    }
#else
    for (int i = 0; i < kNum; ++i) floats[i] = from[i];
#endif
    return floats;
  }

  COSURFGS_FN void Store(float* to) const {
#if defined(__CUDA_ARCH__)
    // By name, as the compiler takes an ordinary store apart where it could mean the same memory as the next.
    if constexpr (kNum == 4) {
      __stcg(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
    } else {
      *to = values[0];
    }
#else
    for (int i = 0; i < kNum; ++i) to[i] = values[i];
#endif
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
