// The XLA custom calls of a training step on CUDA GPUs besides the rasterizer's. Compiled by the C++ compiler: the kernels are
// in cuda_training.cu.

#define COSURFGS_VARIANT cuda

#include "cuda_device.h"
#include "gpu_training_handlers.h"

namespace cosurfgs {
namespace cuda {
namespace {

// All that XLA's interface may be asked for, and enough here: four floats are stored at once.
constexpr size_t kAlignment = 4 * sizeof(float);

// Runs the bodies of one call, whose name begins its messages, on XLA's stream.
class TrainingDevice : public CudaDevice {
 public:
  TrainingDevice(const char* call, cudaStream_t stream, std::function<void*(size_t)> allocate)
      : CudaDevice(stream, std::move(allocate)), call_(call), stream_(stream) {}

  void Copy(void* to, const void* from, size_t bytes) {
    const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_);
    if (copy_error_ == cudaSuccess) copy_error_ = error;
  }

  ffi::Error Finish() const {
    if (refused_bytes()) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        call_ + ": the GPU has no " + std::to_string(refused_bytes()) +
                            " bytes left for scratch memory; use smaller images (data.downscale) or lower "
                            "XLA_PYTHON_CLIENT_MEM_FRACTION of other processes");
    }
    const cudaError_t error = copy_error_ == cudaSuccess ? this->error() : copy_error_;
    if (error != cudaSuccess) return ffi::Error::Internal(call_ + ": CUDA: " + cudaGetErrorString(error));
    return ffi::Error::Success();
  }

 private:
  std::string call_;
  cudaStream_t stream_;
  cudaError_t copy_error_ = cudaSuccess;
};

constexpr auto kPhotometricLosses = [](cudaStream_t stream, ffi::ScratchAllocator scratch, auto... operands) {
  TrainingDevice device("photometric_losses", stream,
                        [&](size_t bytes) { return scratch.Allocate(bytes, kAlignment).value_or(nullptr); });
  return PhotometricLosses(device, operands...);
};

constexpr auto kAdam = [](cudaStream_t stream, auto... operands) {
  TrainingDevice device("adam", stream, [](size_t) { return nullptr; });
  return Adam(device, operands...);
};

}  // namespace
}  // namespace cuda
}  // namespace cosurfgs

// No kCmdBufferCompatible, though nothing is read back: a CUDA graph is run again after the call's scratch memory went back to XLA.
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaPhotometricLosses, cosurfgs::cuda::kPhotometricLosses,
                              cosurfgs::BindPhotometricLosses(xla::ffi::Ffi::Bind()
                                                                  .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                                                  .Ctx<xla::ffi::ScratchAllocator>()));
// One launch that shapes and addresses decide, without scratch memory: XLA may record it into a CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsCudaAdam, cosurfgs::cuda::kAdam,
                              cosurfgs::BindAdam(xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<cudaStream_t>>()),
                              {xla::ffi::Traits::kCmdBufferCompatible});
