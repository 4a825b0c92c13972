// The CUDA bodies of the photometric losses and of Adam on the host, with loops for threads and blocks (see emulated_handlers.cc).
//
// Scratch memory is filled with 0xa5, so that a read of what nobody wrote is seen.

#define COSURFGS_VARIANT emulated

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "emulated_block.h"
#include "gpu_training_handlers.h"

namespace cosurfgs {
namespace emulated {
namespace {

class HostDevice {
 public:
  void* Allocate(size_t bytes) {
    memory_.emplace_back(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
    std::memset(memory_.back().get(), 0xa5, bytes);
    return memory_.back().get();
  }
  void Copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
  template <class Body>
  void For(int64_t n, const typename Body::Args& args) {
    InOrder(n, [&](int64_t i) { Body::Run(args, i); });
  }
  template <class Body>
  void Blocks(int64_t n, const typename Body::Args& args) {
    InOrder(n, [&](int64_t i) {
      HostBlock<Body> block;
      Body::Run(block, args, i);
    });
  }
  ffi::Error Finish() { return ffi::Error::Success(); }

 private:
  std::vector<std::unique_ptr<char, void (*)(void*)>> memory_;
};

constexpr auto kPhotometricLosses = [](auto... operands) {
  HostDevice device;
  return PhotometricLosses(device, operands...);
};
constexpr auto kAdam = [](auto... operands) {
  HostDevice device;
  return Adam(device, operands...);
};

}  // namespace
}  // namespace emulated
}  // namespace cosurfgs

extern "C" void emulation_set(bool is_reversed) { cosurfgs::emulated::is_reversed = is_reversed; }

XLA_FFI_DEFINE_HANDLER_SYMBOL(EmulatedPhotometricLosses, cosurfgs::emulated::kPhotometricLosses,
                              cosurfgs::BindPhotometricLosses(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(EmulatedAdam, cosurfgs::emulated::kAdam, cosurfgs::BindAdam(xla::ffi::Ffi::Bind()));
