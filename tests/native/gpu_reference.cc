// The reference of gpu_reference.h, for a program whose device is a GPU.

#define COSURFGS_VARIANT emulated

#include "gpu_reference.h"

#include <cstdlib>

#include "emulated_device.h"
#include "gpu_memory.h"
#include "gpu_runner.h"

namespace cosurfgs {
namespace program {
namespace {

struct HostApi {
  static void* Allocate(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  static void Free(void* data) { std::free(data); }
  static void Fill(void* data, int byte, size_t bytes) { std::memset(data, byte, bytes); }
  static void ToDevice(void* data, const void* host, size_t bytes) {
    if (bytes) std::memcpy(data, host, bytes);
  }
  static void ToHost(void* host, const void* data, size_t bytes) {
    if (bytes) std::memcpy(host, data, bytes);
  }
};

}  // namespace

Maps ReferenceForward(const Scene& scene, const Request& request) {
  Memory<HostApi> memory(true);
  emulated::CudaDevice device(nullptr, [&](size_t bytes) { return memory.Scratch(bytes); });
  return emulated::RunForward(device, memory, scene, request);
}

Gradients ReferenceBackward(const Scene& scene, const Request& request, const Maps& maps) {
  Memory<HostApi> memory(true);
  emulated::CudaDevice device(nullptr, [&](size_t bytes) { return memory.Scratch(bytes); });
  return emulated::RunBackward(device, memory, scene, request, maps);
}

}  // namespace program
}  // namespace cosurfgs
