// What the CUDA custom calls have from XLA: its stream, its scratch memory, and errors in its form.
// No kernel here.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "gpu/cuda_device.h"
#include "xla/ffi/api/ffi.h"

namespace cosurfgs {
namespace cuda {

namespace ffi = xla::ffi;

// XLA's scratch memory, and XLA's own words when it gives none, which ffi::ScratchAllocator keeps
// from the handler.
class Scratch {
 public:
  template <class Context>
  Scratch(const XLA_FFI_Api* api, Context* context)
      : words_(new ffi::DiagnosticEngine),
        allocator_(*ffi::CtxDecoding<ffi::ScratchAllocator>::Decode(api, context, *words_)) {}

  // Null if XLA gives none. XLA's interface refuses to be asked for more than 16, but what it gives
  // on GPUs lies at multiples of 256. Should that ever change, there is a bit more to ask for,
  // which is better than a training that stops.
  void* Allocate(size_t bytes) {
    void* data = allocator_.Allocate(bytes, kXlaAlignment).value_or(nullptr);
    if (reinterpret_cast<uintptr_t>(data) % kScratchAlignment == 0) return data;
    size_t space = bytes + kScratchAlignment - 1;
    data = allocator_.Allocate(space, kXlaAlignment).value_or(nullptr);
    return data ? std::align(kScratchAlignment, bytes, data, space) : nullptr;
  }

  // Why XLA gave none to a call. Its interface has no code, only words.
  ffi::Error Refusal(const std::string& call, size_t bytes) const {
    const std::string words = words_->Result();
    const auto has = [&](const char* text) { return words.find(text) != std::string::npos; };
    if (has("ut of memory") || has("allocate request") || has("xhausted")) {
      return ffi::Error(
          ffi::ErrorCode::kResourceExhausted,
          call + ": the GPU has no " + std::to_string(bytes) +
              " bytes left for scratch memory; take smaller images or fewer surfels, or lower "
              "XLA_PYTHON_CLIENT_MEM_FRACTION of other processes. XLA: " +
              words);
    }
    return ffi::Error::Internal(
        call + ": XLA refused " + std::to_string(bytes) +
        " bytes of scratch memory, and not for want of memory: this version of JAX and "
        "cosurfgs_jax do not fit together. XLA: " +
        words);
  }

 private:
  static constexpr size_t kXlaAlignment = 16;

  std::unique_ptr<ffi::DiagnosticEngine> words_;  // the allocator points to it
  ffi::ScratchAllocator allocator_;
};

// Runs the bodies of one call, whose name begins its messages, on XLA's stream.
class XlaDevice : public CudaDevice {
 public:
  // scratch: XLA's memory; null for a call that asks for none.
  XlaDevice(const char* call, cudaStream_t stream, Scratch* scratch)
      : CudaDevice(
            stream,
            [scratch](size_t bytes) { return scratch ? scratch->Allocate(bytes) : nullptr; }),
        call_(call),
        scratch_(scratch) {}

  ffi::Error Finish() const {
    if (refused_bytes() && scratch_) return scratch_->Refusal(call_, refused_bytes());
    if (refused_bytes())
      return ffi::Error::Internal(call_ + ": it asked for scratch memory without having any");
    if (error() != cudaSuccess)
      return ffi::Error::Internal(call_ + ": CUDA: " + cudaGetErrorString(error()));
    return ffi::Error::Success();
  }

 private:
  const std::string call_;
  const Scratch* scratch_;
};

}  // namespace cuda
}  // namespace cosurfgs

template <>
struct xla::ffi::CtxDecoding<cosurfgs::cuda::Scratch> {
  using Type = cosurfgs::cuda::Scratch;
  template <class Context>
  static std::optional<Type> Decode(const XLA_FFI_Api* api, Context* context, DiagnosticEngine&) {
    return Type(api, context);
  }
};
