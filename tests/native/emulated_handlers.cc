// The custom calls of gpu/cuda_handlers.cc and gpu/cuda_training_handlers.cc on the host: their own
// text, with emulated_device.h in the GPU's place, behind a stand-in for what XLA offers on GPUs
// only. Registered as calls of the CPU, they get XLA's own call frames; what the stand-in changes
// in them is the stream, which it makes up, and scratch memory, where it is as strict as XLA.
//
// Scratch memory is filled with 0xa5, so that a read of what nobody wrote is seen (as floats
// -2.9e-16, as indices a crash), and has guard bytes behind it. Threads of a phase, and blocks, run
// in the order that is asked for: results must not depend on it.

#define COSURFGS_VARIANT cuda

#include <map>
#include <mutex>

#include "emulated_device.h"
// After the device, so that its templates are known where they are used.
#include "gpu/cuda_handlers.cc"
#include "gpu/cuda_training_handlers.cc"

namespace cosurfgs {
namespace cuda {

cudaError_t CudaDevice::TryKernel() {
  const cuda_stub::Machine& machine = cuda_stub::machine;
  return machine.capability[cuda_stub::present] < machine.needed ? cudaErrorNoKernelImageForDevice
                                                                 : cudaSuccess;
}

}  // namespace cuda
}  // namespace cosurfgs

extern "C" {
// What tests set, and what they read after a call. All int64, as they see it through ctypes.
struct Emulation {
  int64_t is_reversed = 0;
  int64_t band_pairs = int64_t(1) << 24;
  int64_t max_alignment = 16;  // XLA's kMaxAlignment
  int64_t address_offset =
      0;  // of scratch memory from a multiple of 256, where XLA's GPU allocators have it
  int64_t failing_allocation = -1, failing_launch = -1;
  // Of the last call.
  int64_t allocations = 0, launches = 0, largest_alignment = 0, refused_bytes = 0;
} emulation;

// capabilities: 86 for 8.6; the library is taken to run from `needed` on.
void emulation_set_gpus(const int32_t* capabilities, int32_t count, int32_t needed,
                        int32_t present) {
  cuda_stub::machine = {};
  cuda_stub::machine.count = count;
  cuda_stub::machine.needed = needed;
  cuda_stub::present = present;
  for (int i = 0; i < count; ++i) cuda_stub::machine.capability[i] = capabilities[i];
}
int32_t emulation_present_gpu() { return cuda_stub::present; }

// Batches, ballots, visits, hits and whole hits since the last call.
void emulation_work(int64_t* numbers) {
  using cosurfgs::cuda::work;
  numbers[0] = work.batches;
  numbers[1] = work.ballots;
  numbers[2] = work.visits;
  numbers[3] = work.hits;
  numbers[4] = work.whole_hits;
  work = {};
}
}

namespace {

namespace ffi = xla::ffi;
using cosurfgs::cuda::Blame;
using cosurfgs::cuda::watch;

constexpr size_t kGuard = 64;
constexpr unsigned char kFill = 0xa5, kGuardFill = 0x5a;

struct Piece {
  char* base;
  size_t bytes;
};
std::map<void*, Piece> pieces;
const XLA_FFI_Api* xla = nullptr;  // of the call that runs
char stream_of_the_call;

XLA_FFI_Error* GetStream(XLA_FFI_Stream_Get_Args* args) {
  args->stream = &stream_of_the_call;
  return nullptr;
}

XLA_FFI_Error* Allocate(XLA_FFI_DeviceMemory_Allocate_Args* args) {
  const int64_t alignment = args->alignment;
  emulation.largest_alignment = std::max(emulation.largest_alignment, alignment);
  if (alignment & (alignment - 1) || alignment > emulation.max_alignment) {
    return ffi::internal::CreateError(
        xla, ffi::Error::InvalidArgument("Unsupported alignment: " + std::to_string(alignment)));
  }
  if (emulation.allocations++ == emulation.failing_allocation) {
    emulation.refused_bytes = args->size;
    return ffi::internal::CreateError(xla, ffi::Error(ffi::ErrorCode::kResourceExhausted,
                                                      "Out of memory while trying to allocate " +
                                                          std::to_string(args->size) + " bytes."));
  }
  const size_t offset = emulation.address_offset, total = offset + args->size + kGuard;
  char* base = static_cast<char*>(std::aligned_alloc(256, (total + 255) / 256 * 256));
  std::memset(base + offset, kFill, args->size);
  std::memset(base + offset + args->size, kGuardFill, kGuard);
  args->data = base + offset;
  pieces[args->data] = {base, args->size};
  return nullptr;
}

XLA_FFI_Error* Free(XLA_FFI_DeviceMemory_Free_Args* args) {
  const auto found = pieces.find(args->data);
  if (found == pieces.end() || found->second.bytes != args->size) {
    Blame("memory is given back that was not given out");
    return nullptr;
  }
  const char* end = static_cast<char*>(args->data) + args->size;
  for (size_t i = 0; i < kGuard; ++i) {
    if (static_cast<unsigned char>(end[i]) != kGuardFill) Blame("a write behind scratch memory");
  }
  std::free(found->second.base);
  pieces.erase(found);
  return nullptr;
}

// Runs the handler in XLA's frame, with the stand-in for what XLA has on GPUs only.
XLA_FFI_Error* Run(XLA_FFI_Handler* handler, XLA_FFI_CallFrame* frame) {
  if (frame->extension_start) return handler(frame);  // XLA asks about the handler
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);  // XLA may run calls at the same time
  XLA_FFI_Api api = *frame->api;
  api.XLA_FFI_Stream_Get = GetStream;
  api.XLA_FFI_DeviceMemory_Allocate = Allocate;
  api.XLA_FFI_DeviceMemory_Free = Free;
  XLA_FFI_CallFrame copy = *frame;
  copy.api = &api;
  xla = frame->api;
  emulation.allocations = emulation.launches = emulation.largest_alignment =
      emulation.refused_bytes = 0;
  watch = {};
  watch.stream = reinterpret_cast<cudaStream_t>(&stream_of_the_call);
  watch.band_pairs = emulation.band_pairs;
  watch.failing_launch = emulation.failing_launch;
  cosurfgs::cuda::is_reversed = emulation.is_reversed;
  XLA_FFI_Error* error = handler(&copy);
  emulation.launches = watch.launches;
  if (!pieces.empty()) Blame("scratch memory was not given back");
  if (watch.fault.empty()) return error;
  if (error) ffi::internal::DestroyError(xla, error);
  return ffi::internal::CreateError(
      xla, ffi::Error::Internal("the emulation found a fault: " + watch.fault));
}

}  // namespace

extern "C" XLA_FFI_Error* EmulatedRasterForward(XLA_FFI_CallFrame* frame) {
  return Run(CosurfgsCudaRasterForward, frame);
}
extern "C" XLA_FFI_Error* EmulatedRasterBackward(XLA_FFI_CallFrame* frame) {
  return Run(CosurfgsCudaRasterBackward, frame);
}
extern "C" XLA_FFI_Error* EmulatedRasterRemoval(XLA_FFI_CallFrame* frame) {
  return Run(CosurfgsCudaRasterRemoval, frame);
}
extern "C" XLA_FFI_Error* EmulatedPhotometricLosses(XLA_FFI_CallFrame* frame) {
  return Run(CosurfgsCudaPhotometricLosses, frame);
}
extern "C" XLA_FFI_Error* EmulatedAdam(XLA_FFI_CallFrame* frame) {
  return Run(CosurfgsCudaAdam, frame);
}
