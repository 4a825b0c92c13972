// Floats that one access loads or stores: 4 (16 bytes, the most that there is), 2, or a single one.
#pragma once

#include "common/host_device.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// The alignment is what makes nvcc take one access; on the host, memory that lacks it is a fault.
template <int kNum>
struct alignas(kNum * sizeof(float)) Floats {
  static_assert(kNum == 1 || kNum == 2 || kNum == 4, "what a GPU has accesses for");
  float values[kNum];

  COSURFGS_FN float& operator[](int i) { return values[i]; }
  COSURFGS_FN float operator[](int i) const { return values[i]; }

  // At multiples of its size.
  COSURFGS_FN static Floats Load(const float* from) {
    return *reinterpret_cast<const Floats*>(from);
  }
  COSURFGS_FN void Store(float* to) const { *reinterpret_cast<Floats*>(to) = *this; }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
