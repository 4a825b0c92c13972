// The CUDA kernels of independent threads, and what cub does: sorting and prefix sums.

#define COSURFGS_VARIANT cuda

#include <algorithm>
#include <mutex>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "gpu/cuda_launch.cuh"
#include "gpu/rows.h"

namespace cosurfgs {
namespace cuda {
namespace {

// Page-locked memory of the host for what is read back: a copy to any other place goes through a
// buffer of the driver's. A block serves one copy at a time, as XLA has threads for every GPU; the
// system never gets it back.
class PinnedBlocks {
 public:
  static constexpr int64_t kNumbers = 4096;  // more than there are rows of tiles

  // Null if the system has none; then memory of any kind does.
  int64_t* Take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!free_.empty()) {
      int64_t* block = free_.back();
      free_.pop_back();
      return block;
    }
    void* block = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&block, kNumbers * sizeof(int64_t), cudaHostAllocPortable);
    if (error == cudaSuccess) return static_cast<int64_t*>(block);
    cudaGetLastError();  // else the next launch would be blamed
    return nullptr;
  }
  void Return(int64_t* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (block) free_.push_back(block);
  }

 private:
  std::mutex mutex_;
  std::vector<int64_t*> free_;
};

PinnedBlocks& Pinned() {
  static PinnedBlocks* blocks =
      new PinnedBlocks;  // not destroyed at exit: other threads may still be reading
  return *blocks;
}

}  // namespace

template void CudaDevice::For<MakeViews>(int64_t, const MakeViews::Args&);
template void CudaDevice::For<ProjectSurfel<0>>(int64_t, const ProjectArgs&);
template void CudaDevice::For<ProjectSurfel<1>>(int64_t, const ProjectArgs&);
template void CudaDevice::For<ProjectSurfel<2>>(int64_t, const ProjectArgs&);
template void CudaDevice::For<ProjectSurfel<3>>(int64_t, const ProjectArgs&);
template void CudaDevice::For<CountPairs>(int64_t, const CountPairs::Args&);
template void CudaDevice::For<EmitPair>(int64_t, const EmitPair::Args&);
template void CudaDevice::For<FindTileBegin>(int64_t, const FindTileBegin::Args&);
template void CudaDevice::For<ScatterOffset>(int64_t, const ScatterOffset::Args&);
template void CudaDevice::For<TakeContributions>(int64_t, const TakeArgs&);
template void CudaDevice::For<TakeRemoval>(int64_t, const TakeArgs&);
template void CudaDevice::For<WriteStatus>(int64_t, const WriteStatus::Args&);

#define COSURFGS_INSTANTIATE_ROWS(Op, size)                                      \
  template void CudaDevice::For<AddRows<Op, size>>(int64_t, const AddRowsArgs&); \
  template void CudaDevice::Blocks<AddLargeRows<Op, size>>(int64_t, const AddRowsArgs&)

COSURFGS_INSTANTIATE_ROWS(SumOfContributions, kContributions);
COSURFGS_INSTANTIATE_ROWS(Sum, kRemoval);
COSURFGS_INSTANTIATE_ROWS(Sum, kColorGradient);
COSURFGS_INSTANTIATE_ROWS(Sum, kAllGradient);
template void CudaDevice::For<AddBand<kColorGradient>>(int64_t, const AddBandArgs&);
template void CudaDevice::For<AddBand<kAllGradient>>(int64_t, const AddBandArgs&);

void* CudaDevice::Allocate(size_t bytes) {
  if (failed()) return nullptr;
  void* data = allocate_(bytes);
  if (!data) refused_bytes_ = bytes;
  return data;
}

void CudaDevice::Zero(void* data, size_t bytes) {
  if (failed() || bytes == 0) return;
  Keep(cudaMemsetAsync(data, 0, bytes, stream_));
}

void CudaDevice::Copy(void* to, const void* from, size_t bytes) {
  if (failed() || bytes == 0) return;
  Keep(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
}

void* CudaDevice::Temporary(size_t bytes) {
  if (bytes > temporary_bytes_) {
    temporary_ = Allocate(bytes);
    temporary_bytes_ = temporary_ ? bytes : 0;
  }
  return temporary_;
}

void CudaDevice::SortPairs(const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values,
                           int32_t* sorted_values, int64_t n, int bits) {
  if (failed() || n <= 0) return;
  size_t bytes = 0;
  Keep(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, values, sorted_values, n,
                                       0, bits, stream_));
  void* temporary = Temporary(bytes);
  if (failed()) return;
  Keep(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, values, sorted_values,
                                       n, 0, bits, stream_));
}

void CudaDevice::ExclusiveSum(const int64_t* in, int64_t* out, int64_t n) {
  if (failed() || n <= 0) return;
  size_t bytes = 0;
  Keep(cub::DeviceScan::ExclusiveSum(nullptr, bytes, in, out, n, stream_));
  void* temporary = Temporary(bytes);
  if (failed()) return;
  Keep(cub::DeviceScan::ExclusiveSum(temporary, bytes, in, out, n, stream_));
}

// 16 M of 88 bytes are 1.4 GB.
int64_t CudaDevice::max_band_pairs() const { return int64_t(1) << 24; }

cudaError_t CudaDevice::TryKernel() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, ForKernel<WriteStatus>);
}

int64_t CudaDevice::Read(const int64_t* value) { return ReadEvery(value, 1, 1)[0]; }

std::vector<int64_t> CudaDevice::ReadEvery(const int64_t* values, int64_t stride, int64_t count) {
  std::vector<int64_t> result(count);
  if (failed()) return result;
  int64_t* pinned = count <= PinnedBlocks::kNumbers ? Pinned().Take() : nullptr;
  int64_t* target = pinned ? pinned : result.data();
  Keep(cudaMemcpy2DAsync(target, sizeof(int64_t), values, stride * sizeof(int64_t), sizeof(int64_t),
                         count, cudaMemcpyDeviceToHost, stream_));
  Keep(cudaStreamSynchronize(stream_));
  if (pinned && !failed()) std::copy(pinned, pinned + count, result.begin());
  Pinned().Return(pinned);
  if (failed()) std::fill(result.begin(), result.end(), 0);
  return result;
}

}  // namespace cuda
}  // namespace cosurfgs
