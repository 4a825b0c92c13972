// The XLA custom calls of a training step on CUDA GPUs besides the rasterizer's. Compiled by the
// C++ compiler: the kernels are in gpu/cuda_training.cu.

#define COSURFGS_VARIANT cuda

#include "gpu/cuda_xla.h"
#include "gpu/training_handlers.h"

namespace cosurfgs {
namespace cuda {
namespace {

constexpr auto kPhotometricLosses = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device("photometric_losses", stream, &scratch);
  return PhotometricLosses(device, operands...);
};

constexpr auto kAdam = [](cudaStream_t stream, auto... operands) {
  XlaDevice device("adam", stream, nullptr);
  return Adam(device, operands...);
};

}  // namespace
}  // namespace cuda
}  // namespace cosurfgs

// No kCmdBufferCompatible, though nothing is read back: a CUDA graph is run again after the call's
// scratch memory went back to XLA.
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsCudaPhotometricLosses, cosurfgs::cuda::kPhotometricLosses,
    cosurfgs::BindPhotometricLosses(xla::ffi::Ffi::Bind()
                                        .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                                        .Ctx<cosurfgs::cuda::Scratch>()));
// One launch that shapes and addresses decide, without scratch memory: XLA may record it into a
// CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsCudaAdam, cosurfgs::cuda::kAdam,
    cosurfgs::BindAdam(xla::ffi::Ffi::Bind().Ctx<xla::ffi::PlatformStream<cudaStream_t>>()),
    {xla::ffi::Traits::kCmdBufferCompatible});
