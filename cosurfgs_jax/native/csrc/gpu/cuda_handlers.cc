// The XLA custom calls of the rasterizer on CUDA GPUs. Compiled by the C++ compiler: the kernels
// are in cuda_*.cu.

#define COSURFGS_VARIANT cuda

#include <string>
#include <thread>

#include "gpu/cuda_xla.h"
#include "gpu/handlers.h"

// What the kernels were compiled for, for messages: CMake says it.
#ifndef COSURFGS_CUDA_CONTENT
#define COSURFGS_CUDA_CONTENT "unknown"
#endif

namespace cosurfgs {
namespace cuda {

constexpr auto kForward = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device("rasterize", stream, &scratch);
  return Forward(device, operands...);
};
constexpr auto kRemove = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device("rasterize", stream, &scratch);
  return Removal(device, operands...);
};
constexpr auto kBackward = [](cudaStream_t stream, Scratch scratch, auto... operands) {
  XlaDevice device("rasterize", stream, &scratch);
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
  const std::string major = std::to_string(properties.major),
                    minor = std::to_string(properties.minor);
  std::string text = "GPU " + std::to_string(device) + " (" + properties.name +
                     ", compute capability " + major + "." + minor +
                     "): " + cudaGetErrorString(error);
  if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction &&
      error != cudaErrorUnsupportedPtxVersion) {
    return text;
  }
  text += ". The library holds " COSURFGS_CUDA_CONTENT "; ";
  return text + (properties.major < 8
                     ? "compute capability 8.0 (Ampere) or newer is needed"
                     : "install the package again with COSURFGS_CUDA_ARCHITECTURES=" + major +
                           minor + " in the environment, with an nvcc that knows this GPU");
}

}  // namespace cuda
}  // namespace cosurfgs

// Why one of these GPUs, all if count is 0, cannot run the library, or "". The text is valid until
// the thread's next call.
extern "C" const char* cosurfgs_cuda_problem(const int32_t* devices, int32_t count) {
  static thread_local std::string problem;
  int all = 0;
  const cudaError_t error = cudaGetDeviceCount(&all);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  std::string found;
  // In a thread of its own, so that the caller's present device stays what it is: to set it again
  // would give it a context, which takes hundreds of megabytes of a GPU that this process may not
  // use.
  std::thread([&] {
    for (int i = 0; found.empty() && i < (count ? count : all); ++i) {
      found = cosurfgs::cuda::Problem(count ? devices[i] : i);
    }
  }).join();
  problem = found;
  return problem.c_str();
}

// No kCmdBufferCompatible: the number of pairs is read back, so a call cannot be recorded into a
// CUDA graph.
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsCudaRasterForward, cosurfgs::cuda::kForward,
    cosurfgs::BindForward(xla::ffi::Ffi::Bind()
                              .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                              .Ctx<cosurfgs::cuda::Scratch>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsCudaRasterRemoval, cosurfgs::cuda::kRemove,
    cosurfgs::BindRemoval(xla::ffi::Ffi::Bind()
                              .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                              .Ctx<cosurfgs::cuda::Scratch>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsCudaRasterBackward, cosurfgs::cuda::kBackward,
    cosurfgs::BindBackward(xla::ffi::Ffi::Bind()
                               .Ctx<xla::ffi::PlatformStream<cudaStream_t>>()
                               .Ctx<cosurfgs::cuda::Scratch>()));
