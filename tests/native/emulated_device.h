// CudaDevice on the host: the members that gpu/cuda_binning.cu and gpu/cuda_launch.cuh give it (but
// TryKernel), with loops for threads, blocks and warps, and the standard library for cub. What it
// cannot show is what nvcc and a GPU make of it: races within a phase, occupancy, speed.
//
// It keeps an eye on what a GPU would not forgive: a stream that is not the caller's, memory that
// is not aligned, work after an error. A test can have a launch fail.
#pragma once

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "gpu/cuda_device.h"
#include "emulated_block.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {
namespace {

struct Watch {
  int64_t band_pairs = int64_t(1) << 24;
  int64_t failing_launch = -1;  // reports an error; -1: none does
  cudaStream_t stream = nullptr;
  int64_t launches = 0;
  bool has_failed = false;  // an error was reported, or memory refused
  std::string fault;        // the first thing that should not have happened
};
Watch watch;

void Blame(const std::string& what) {
  if (watch.fault.empty()) watch.fault = what;
}

// What every piece of work on the device reports.
cudaError_t Launched(cudaStream_t stream) {
  if (stream != watch.stream) Blame("work on a stream that is not the caller's");
  if (watch.has_failed) Blame("work after an error");
  if (watch.launches++ != watch.failing_launch) return cudaSuccess;
  watch.has_failed = true;
  return cudaErrorLaunchFailure;
}

}  // namespace

inline void* CudaDevice::Allocate(size_t bytes) {
  if (failed()) return nullptr;
  void* data = allocate_(bytes);
  if (reinterpret_cast<uintptr_t>(data) % kScratchAlignment) Blame("scratch memory is not aligned");
  if (!data) {
    refused_bytes_ = bytes;
    watch.has_failed = true;
  }
  return data;
}

inline void CudaDevice::Zero(void* data, size_t bytes) {
  if (failed() || bytes == 0) return;
  Keep(Launched(stream_));
  if (!failed()) std::memset(data, 0, bytes);
}

inline void CudaDevice::Copy(void* to, const void* from, size_t bytes) {
  if (failed() || bytes == 0) return;
  Keep(Launched(stream_));
  if (!failed()) std::memcpy(to, from, bytes);
}

inline void* CudaDevice::Temporary(size_t bytes) {
  if (bytes > temporary_bytes_) {
    temporary_ = Allocate(bytes);
    temporary_bytes_ = temporary_ ? bytes : 0;
  }
  return temporary_;
}

template <class Body>
void CudaDevice::For(int64_t n, const typename Body::Args& args) {
  if (failed() || n <= 0) return;
  Keep(Launched(stream_));
  if (failed()) return;
  InOrder(n, [&](int64_t i) { Body::Run(args, i); });
}

template <class Body>
void CudaDevice::Blocks(int64_t n, const typename Body::Args& args) {
  if (failed() || n <= 0) return;
  Keep(Launched(stream_));
  if (failed()) return;
  InOrder(n, [&](int64_t i) {
    HostBlock<Body> block;
    Body::Run(block, args, i);
  });
}

inline void CudaDevice::SortPairs(const uint32_t* keys, uint32_t* sorted_keys,
                                  const int32_t* values, int32_t* sorted_values, int64_t n,
                                  int bits) {
  if (failed() || n <= 0) return;
  int64_t* order =
      static_cast<int64_t*>(Temporary(n * sizeof(int64_t)));  // cub asks for memory, too
  if (failed()) return;
  Keep(Launched(stream_));
  if (failed()) return;
  const auto digits = [&](int64_t i) { return bits < 32 ? keys[i] & ((1u << bits) - 1) : keys[i]; };
  std::iota(order, order + n, 0);
  std::stable_sort(order, order + n, [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
  for (int64_t i = 0; i < n; ++i) {
    sorted_keys[i] = keys[order[i]];
    sorted_values[i] = values[order[i]];
  }
}

inline void CudaDevice::ExclusiveSum(const int64_t* in, int64_t* out, int64_t n) {
  if (failed() || n <= 0) return;
  int64_t* sum = static_cast<int64_t*>(Temporary(sizeof(int64_t)));
  if (failed()) return;
  Keep(Launched(stream_));
  if (failed()) return;
  *sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[i] = *sum;
    *sum += in[i];
  }
}

inline int64_t CudaDevice::max_band_pairs() const { return watch.band_pairs; }

inline int64_t CudaDevice::Read(const int64_t* value) { return ReadEvery(value, 1, 1)[0]; }

inline std::vector<int64_t> CudaDevice::ReadEvery(const int64_t* values, int64_t stride,
                                                  int64_t count) {
  std::vector<int64_t> result(count);
  if (failed()) return result;
  Keep(Launched(stream_));
  if (failed()) return result;
  for (int64_t i = 0; i < count; ++i) result[i] = values[i * stride];
  return result;
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
