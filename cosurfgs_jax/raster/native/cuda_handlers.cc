// The XLA custom calls of the rasterizer on CUDA GPUs. Compiled by the C++ compiler: the kernels are in cuda_*.cu.

#define COSURFGS_VARIANT cuda

#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cuda_device.h"
#include "gpu_handlers.h"

// What the kernels were compiled for, for messages: CMake says it.
#ifndef COSURFGS_CUDA_CONTENT
#define COSURFGS_CUDA_CONTENT "unknown"
#endif

namespace cosurfgs {
namespace cuda {

// XLA's scratch memory, and XLA's own words when it gives none, which ffi::ScratchAllocator keeps from the handler.
class Scratch {
 public:
  template <class Context>
  Scratch(const XLA_FFI_Api* api, Context* context)
      : words_(new ffi::DiagnosticEngine),
        allocator_(*ffi::CtxDecoding<ffi::ScratchAllocator>::Decode(api, context, *words_)) {}

  // Null if XLA gives none. XLA's interface refuses to be asked for more than 16, but what it gives on GPUs lies at multiples
  // of 256. Should that ever change, there is a bit more to ask for, which is better than a training that stops.
  void* Allocate(size_t bytes) {
    void* data = allocator_.Allocate(bytes, kXlaAlignment).value_or(nullptr);
    if (reinterpret_cast<uintptr_t>(data) % kScratchAlignment == 0) return data;
    size_t space = bytes + kScratchAlignment - 1;
    data = allocator_.Allocate(space, kXlaAlignment).value_or(nullptr);
    return data ? std::align(kScratchAlignment, bytes, data, space) : nullptr;
  }

  // Why XLA gave none. Its interface has no code, only words.
  ffi::Error Refusal(size_t bytes) const {
    const std::string words = words_->Result();
    const auto has = [&](const char* text) { return words.find(text) != std::string::npos; };
    if (has("ut of memory") || has("allocate request") || has("xhausted")) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "rasterize: the GPU has no " + std::to_string(bytes) +
                            " bytes left for scratch memory; draw smaller images or fewer surfels, or lower "
                            "XLA_PYTHON_CLIENT_MEM_FRACTION of other processes. XLA: " + words);
    }
    return ffi::Error::Internal("rasterize: XLA refused " + std::to_string(bytes) +
                                " bytes of scratch memory, and not for want of memory: this version of JAX and "
                                "cosurfgs_jax do not fit together. XLA: " + words);
  }

 private:
  static constexpr size_t kXlaAlignment = 16;

  std::unique_ptr<ffi::DiagnosticEngine> words_;  // the allocator points to it
  ffi::ScratchAllocator allocator_;
};

// The pipeline of gpu_handlers.h on XLA's stream, with XLA's memory.
class XlaDevice : public CudaDevice {
 public:
  XlaDevice(cudaStream_t stream, Scratch& scratch)
      : CudaDevice(stream, [&scratch](size_t bytes) { return scratch.Allocate(bytes); }), scratch_(scratch) {}

  ffi::Error Finish() const {
    if (refused_bytes()) return scratch_.Refusal(refused_bytes());
    if (error() != cudaSuccess) {
      return ffi::Error::Internal(std::string("rasterize: CUDA: ") + cudaGetErrorString(error()));
    }
    return ffi::Error::Success();
  }

 private:
  const Scratch& scratch_;
};

constexpr auto kForward = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device(stream, scratch);
  return Forward(device, operands...);
};
constexpr auto kBackward = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device(stream, scratch);
  return Backward(device, operands...);
};

// Why a device cannot run the library, or "".
static std::string Problem(int device) {
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = CudaDevice::TryKernel();
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // it must not be taken for that of a later call
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, device);
  const std::string major = std::to_string(properties.major), minor = std::to_string(properties.minor);
  std::string text = "GPU " + std::to_string(device) + " (" + properties.name + ", compute capability " + major + "." +
                     minor + "): " + cudaGetErrorString(error);
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction &&
      error != cudaErrorUnsupportedPtxVersion) {
    return text;
  }
  text += ". The library holds " COSURFGS_CUDA_CONTENT "; ";
  return text + (properties.major < 8 ? "compute capability 8.0 (Ampere) or newer is needed"
                                      : "install the package again with COSURFGS_CUDA_ARCHITECTURES=" + major + minor +
                                            " in the environment, with an nvcc that knows this GPU");
}

}  // namespace cuda
}  // namespace cosurfgs

// Why one of these GPUs, all if count is 0, cannot run the library, or "". The text is valid until the thread's next call.
extern "C" const char* cosurfgs_cuda_problem(const int32_t* devices, int32_t count) {
  static thread_local std::string problem;
  int all = 0;
  const cudaError_t error = cudaGetDeviceCount(&all);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  std::string found;
  // In a thread of its own, so that the caller's present device stays what it is: to set it again would give it a context, which
  // takes hundreds of megabytes of a GPU that this process may not use.
  std::thread([&] {
    for (int i = 0; found.empty() && i < (count ? count : all); ++i) {
      found = cosurfgs::cuda::Problem(count ? devices[i] : i);
    }
  }).join();
  problem = found;
  return problem.c_str();
}

template <>
struct xla::ffi::CtxDecoding<cosurfgs::cuda::Scratch> {
  using Type = cosurfgs::cuda::Scratch;
  template <class Context>
  static std::optional<Type> Decode(const XLA_FFI_Api* api, Context* context, DiagnosticEngine&) {
    return Type(api, context);
  }
};

// No kCmdBufferCompatible: the number of pairs is read back, so a call cannot be recorded into a CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaRasterForward, cosurfgs::cuda::kForward,
                              cosurfgs::BindForward(xla::ffi::Ffi::Bind()
                                                        .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                                        .Ctx<cosurfgs::cuda::Scratch>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaRasterBackward, cosurfgs::cuda::kBackward,
                              cosurfgs::BindBackward(xla::ffi::Ffi::Bind()
                                                         .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                                         .Ctx<cosurfgs::cuda::Scratch>()));
