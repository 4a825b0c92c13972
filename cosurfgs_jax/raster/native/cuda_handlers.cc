// The XLA custom calls of the rasterizer on CUDA GPUs. Compiled by the C++ compiler: the kernels are in cuda_*.cu.

#define COSURFGS_VARIANT cuda

#include "cuda_device.h"
#include "gpu_handlers.h"

namespace cosurfgs {
namespace cuda {

// The pipeline of gpu_handlers.h on XLA's stream, with XLA's memory.
class XlaDevice : public CudaDevice {
 public:
  XlaDevice(cudaStream_t stream, ffi::ScratchAllocator& scratch)
      : CudaDevice(stream, [&scratch](size_t bytes) { return scratch.Allocate(bytes, 256).value_or(nullptr); }) {}

  ffi::Error Finish() const {
    if (refused_bytes()) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "rasterize: the GPU has no " + std::to_string(refused_bytes() >> 20) +
                            " MiB left for scratch memory; draw smaller images or fewer surfels, or lower "
                            "XLA_PYTHON_CLIENT_MEM_FRACTION of other processes");
    }
    if (error() != cudaSuccess) {
      return ffi::Error::Internal(std::string("rasterize: CUDA: ") + cudaGetErrorString(error()));
    }
    return ffi::Error::Success();
  }
};

constexpr auto kForward = [](cudaStream_t stream, ffi::ScratchAllocator scratch, auto... operands) {
  XlaDevice device(stream, scratch);
  return Forward(device, operands...);
};
constexpr auto kBackward = [](cudaStream_t stream, ffi::ScratchAllocator scratch, auto... operands) {
  XlaDevice device(stream, scratch);
  return Backward(device, operands...);
};

}  // namespace cuda
}  // namespace cosurfgs

// Why the GPUs of this machine cannot run the library, or "".
extern "C" const char* cosurfgs_cuda_problem() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  for (int device = 0; device < count; ++device) {
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (major < 8) return "a GPU here is older than compute capability 8.0 (Ampere), for which the library is compiled";
  }
  return "";
}

// No kCmdBufferCompatible: the number of pairs is read back, so a call cannot be recorded into a CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaRasterForward, cosurfgs::cuda::kForward,
                              cosurfgs::BindForward(xla::ffi::Ffi::Bind()
                                                        .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                                        .Ctx<xla::ffi::ScratchAllocator>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaRasterBackward, cosurfgs::cuda::kBackward,
                              cosurfgs::BindBackward(xla::ffi::Ffi::Bind()
                                                         .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                                         .Ctx<xla::ffi::ScratchAllocator>()));
