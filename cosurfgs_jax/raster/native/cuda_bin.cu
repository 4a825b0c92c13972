// The CUDA kernels of independent threads, and what cub does: sorting and prefix sums.

#define COSURFGS_VARIANT cuda

#include <algorithm>

#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "cuda_launch.cuh"
#include "gpu_bin.h"

namespace cosurfgs {
namespace cuda {

template void CudaDevice::For<MakeViews>(int64_t, const MakeViews::Args&);
template void CudaDevice::For<ProjectSurfel>(int64_t, const ProjectSurfel::Args&);
template void CudaDevice::For<CountPairs>(int64_t, const CountPairs::Args&);
template void CudaDevice::For<EmitPair>(int64_t, const EmitPair::Args&);
template void CudaDevice::For<FindTileBegin>(int64_t, const FindTileBegin::Args&);
template void CudaDevice::For<ScatterOffset>(int64_t, const ScatterOffset::Args&);
template void CudaDevice::For<AddRows>(int64_t, const AddRows::Args&);
template void CudaDevice::For<AddContributions>(int64_t, const AddContributions::Args&);
template void CudaDevice::For<WriteStatus>(int64_t, const WriteStatus::Args&);

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

void* CudaDevice::Temporary(size_t bytes) {
  if (bytes > temporary_bytes_) {
    temporary_ = Allocate(bytes);
    temporary_bytes_ = temporary_ ? bytes : 0;
  }
  return temporary_;
}

void CudaDevice::SortPairs(const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values, int32_t* sorted_values,
                           int64_t n, int bits) {
  if (failed() || n <= 0) return;
  size_t bytes = 0;
  Keep(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, sorted_keys, values, sorted_values, n, 0, bits, stream_));
  void* temporary = Temporary(bytes);
  if (failed()) return;
  Keep(cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, sorted_keys, values, sorted_values, n, 0, bits, stream_));
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
  Keep(cudaMemcpy2DAsync(result.data(), sizeof(int64_t), values, stride * sizeof(int64_t), sizeof(int64_t), count,
                         cudaMemcpyDeviceToHost, stream_));
  Keep(cudaStreamSynchronize(stream_));
  if (failed()) std::fill(result.begin(), result.end(), 0);
  return result;
}

}  // namespace cuda
}  // namespace cosurfgs
