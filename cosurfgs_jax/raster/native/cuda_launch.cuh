// How bodies become CUDA kernels; included by the files that instantiate them.
#pragma once

#include "cuda_device.h"
#include "gpu_blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kForThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class Body>
__global__ void __launch_bounds__(kForThreads) ForKernel(const typename Body::Args args, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kForThreads + threadIdx.x;
  if (i < n) Body::Run(args, i);
}

// A warp of rows in registers: all loops over them are unrolled.
template <int kSize>
struct CudaWarp {
  float values[kSize];
  template <class Send, class Receive>
  __device__ __forceinline__ void Exchange(int width, Send send, Receive receive) {
    const int lane = threadIdx.x % kWarp;
    receive(lane, values, __shfl_xor_sync(kAllLanes, send(lane, values), width));
  }
};

template <class Body>
class CudaBlock {
 public:
  __device__ explicit CudaBlock(typename Body::Shared& shared) : shared_(shared) {}
  __device__ typename Body::Shared& shared() { return shared_; }

  template <class Function>
  __device__ __forceinline__ void Each(Function fn) {
    fn(int(threadIdx.x), state_);
    __syncthreads();
  }

  template <class Predicate>
  __device__ __forceinline__ bool None(Predicate is_set) {
    return !__syncthreads_or(is_set(state_));
  }

  template <int kSize, class Op, int kBatch, int kUsed, class Function>
  __device__ __forceinline__ void Rows(int count, Slab<kBatch, kUsed>& slab, Function fn) {
    const int w = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int i = 0; i < count; ++i) {
      CudaWarp<kSize> warp;
#pragma unroll
      for (int k = 0; k < kSize; ++k) warp.values[k] = 0.0f;
      const bool is_hit = __any_sync(kAllLanes, fn(state_, i, warp.values));
      if (lane == 0) slab.is_hit[w][i] = is_hit;
      if (!is_hit) continue;  // the same for all lanes
      CombineLanes<kSize, Op>(warp);
      if (lane < kUsed) slab.values[w][i][lane] = warp.values[0];
    }
    __syncthreads();
  }

 private:
  typename Body::State state_;
  typename Body::Shared& shared_;
};

template <class Body>
__global__ void __launch_bounds__(Body::kThreads) BlockKernel(const typename Body::Args args) {
  // Bytes, as shared memory may have no constructors.
  __shared__ alignas(typename Body::Shared) unsigned char bytes[sizeof(typename Body::Shared)];
  CudaBlock<Body> block(*reinterpret_cast<typename Body::Shared*>(bytes));
  Body::Run(block, args, blockIdx.x);
}

template <class Body>
void CudaDevice::For(int64_t n, const typename Body::Args& args) {
  if (failed() || n <= 0) return;
  ForKernel<Body><<<unsigned((n + kForThreads - 1) / kForThreads), kForThreads, 0, stream_>>>(args, n);
  Keep(cudaGetLastError());
}

template <class Body>
void CudaDevice::Blocks(int64_t n, const typename Body::Args& args) {
  if (failed() || n <= 0) return;
  BlockKernel<Body><<<unsigned(n), Body::kThreads, 0, stream_>>>(args);
  Keep(cudaGetLastError());
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
