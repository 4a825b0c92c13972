// Launches the pipeline's bodies on a CUDA stream. No kernel here, so that files without device
// code can include it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// Of scratch memory: cub asks for it, and records are loaded 16 bytes at a time.
constexpr size_t kScratchAlignment = 256;

// The first thing that goes wrong is kept, and what comes after it does nothing.
class CudaDevice {
 public:
  // allocate: device memory at a multiple of kScratchAlignment that lives as long as the call; null
  // if there is none.
  CudaDevice(cudaStream_t stream, std::function<void*(size_t)> allocate)
      : stream_(stream), allocate_(std::move(allocate)) {}

  void* Allocate(size_t bytes);
  void Zero(void* data, size_t bytes);
  void Copy(void* to, const void* from, size_t bytes);  // both on the device

  // A thread for each of Body::Run(args, i), i in [0, n).
  template <class Body>
  void For(int64_t n, const typename Body::Args& args);

  // A block of Body::kThreads for each of Body::Run(block, args, i). A block offers
  //   shared()            its Body::Shared;
  //   Each(f)             f(thread, state) on every thread, then a barrier;
  //   None(f)             whether f(state) is false on every thread, after a barrier;
  //   Visit(patches, order, reach, meet, fill)
  //                       each warp goes through the surfels i of a batch whose patches[i] has the
  //                       warp's bit and that one of its threads can reach, i < reach(state):
  //                       threads for which meet(state, i, hits) is true call fill(state, i, hits);
  //                       then a barrier;
  //   Rows<Op>(patches, slab, order, reach, meet, fill)
  //                       likewise, but where one thread of a warp meets the surfel, all of them
  //                       call fill(state, i, hits, is_any, row), is_any[p]: whether pixel p of a
  //                       thread of the warp is hit; their rows are put together by Op into the
  //                       slab.
  template <class Body>
  void Blocks(int64_t n, const typename Body::Args& args);

  // Sorts pairs by the low `bits` of their keys, keeping the order of equal ones.
  void SortPairs(const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values,
                 int32_t* sorted_values, int64_t n, int bits);
  void ExclusiveSum(const int64_t* in, int64_t* out, int64_t n);

  // A number from device memory, after all that was launched before: waits for the stream.
  int64_t Read(const int64_t* value);
  // Likewise `count` numbers that are `stride` apart.
  std::vector<int64_t> ReadEvery(const int64_t* values, int64_t stride, int64_t count);

  // Rows of gradients in memory at a time.
  int64_t max_band_pairs() const;

  // Whether the present device has a kernel of this library to run, with a reason if not. Loads it,
  // so a device that needs the PTX compiles it now.
  static cudaError_t TryKernel();

  cudaError_t error() const { return error_; }
  size_t refused_bytes() const { return refused_bytes_; }  // of the allocation that failed, or 0
  bool failed() const { return error_ != cudaSuccess || refused_bytes_ != 0; }

 private:
  void Keep(cudaError_t error) {
    if (error_ == cudaSuccess) error_ = error;
  }
  void* Temporary(size_t bytes);

  cudaStream_t stream_;
  std::function<void*(size_t)> allocate_;
  void* temporary_ = nullptr;  // what cub asks for
  size_t temporary_bytes_ = 0, refused_bytes_ = 0;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
