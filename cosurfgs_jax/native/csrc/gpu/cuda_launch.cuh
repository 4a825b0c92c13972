// How bodies become CUDA kernels; included by the files that instantiate them.
#pragma once

#include <type_traits>

#include "gpu/cuda_device.h"
#include "gpu/blend.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

constexpr int kForThreads = 256;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class Body>
__global__ void __launch_bounds__(kForThreads)
    ForKernel(const typename Body::Args args, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * kForThreads + threadIdx.x;
  if (i < n) Body::Run(args, i);
}

// A warp of rows in registers: all loops over them are unrolled.
template <int kCount>
struct CudaWarp {
  float values[kCount];
  int lane;
  template <class Combine>
  __device__ __forceinline__ void Exchange(int width, int i, int j, Combine combine) {
    const bool is_upper = lane & width;
    const float kept = is_upper ? values[j] : values[i], sent = is_upper ? values[i] : values[j];
    values[i] = combine(lane, kept, __shfl_xor_sync(kAllLanes, sent, width));
  }
};

// Hides from the compiler where a number comes from, so that it keeps it in a register instead of
// making it anew at each use.
__device__ __forceinline__ int Kept(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

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

  template <int kBatch, class Reach, class Meet, class Fill>
  __device__ __forceinline__ void Visit(const uint8_t (&patches)[kBatch], Order order, Reach reach,
                                        Meet meet, Fill fill) {
#pragma unroll 1
    for (int chunk = 0; chunk < kBatch; chunk += kWarp) {
      ForMarked(Marked(patches, chunk, order, reach), chunk, order, [&](int i) {
        Hits found;
        if (meet(state_, i, found)) fill(state_, i, found);
      });
    }
    __syncthreads();
  }

  template <class Op, int kBatch, int kUsed, class Reach, class Meet, class Fill>
  __device__ __forceinline__ void Rows(const uint8_t (&patches)[kBatch], Slab<kBatch, kUsed>& slab,
                                       Order order, Reach reach, Meet meet, Fill fill) {
    const int w = threadIdx.x / kWarp, lane = Kept(threadIdx.x % kWarp);
    const int target =
        Kept(int(&slab.values[w][0][LaneNumber<kUsed>(lane)] - &slab.values[0][0][0]));
#pragma unroll 1
    for (int chunk = 0; chunk < kBatch; chunk += kWarp) {
      uint32_t is_hit = 0;
      ForMarked(Marked(patches, chunk, order, reach), chunk, order, [&](int i) {
        Hits found;
        meet(state_, i, found);
        bool is_any[kPixels];  // the same for all lanes
#pragma unroll
        for (int p = 0; p < kPixels; ++p) is_any[p] = __any_sync(kAllLanes, found.of[p].is_hit);
        if (!is_any[0] && !is_any[1]) return;
        CudaWarp<kUsed> warp;
        warp.lane = lane;
        fill(state_, i, found, is_any, warp.values);
        CombineLanes<kUsed, Op>(warp);
        (&slab.values[0][0][0])[target + i * kUsed] = warp.values[0];
        is_hit |= 1u << (i - chunk);
      });
      if (lane == 0) slab.is_hit[w][chunk / kWarp] = is_hit;
    }
    __syncthreads();
  }

 private:
  // Which surfels of a chunk the warp visits; the first one in the highest bit.
  template <int kBatch, class Reach>
  __device__ __forceinline__ uint32_t Marked(const uint8_t (&patches)[kBatch], int chunk,
                                             Order order, Reach reach) const {
    const int w = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int end = __reduce_max_sync(kAllLanes, reach(state_));
    const int i = chunk + (order == Order::kForward ? kWarp - 1 - lane : lane);
    return __ballot_sync(kAllLanes, i < end && (patches[i] >> w & 1));
  }
  template <class Function>
  __device__ __forceinline__ static void ForMarked(uint32_t marked, int chunk, Order order,
                                                   Function fn) {
    while (marked) {  // the same for all lanes
      const int top = kWarp - 1 - __clz(marked);
      marked ^= 1u << top;
      fn(chunk + (order == Order::kForward ? kWarp - 1 - top : top));
    }
  }

  typename Body::State state_;
  typename Body::Shared& shared_;
};

// Blocks that a multiprocessor must be able to hold at a time: decides how many registers there
// are.
template <class Body, class = void>
constexpr int kMinBlocks = 1;
template <class Body>
constexpr int kMinBlocks<Body, std::void_t<decltype(Body::kMinBlocks)>> = Body::kMinBlocks;

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, kMinBlocks<Body>)
    BlockKernel(const typename Body::Args args) {
  // Bytes, as shared memory may have no constructors.
  __shared__ alignas(typename Body::Shared) unsigned char bytes[sizeof(typename Body::Shared)];
  CudaBlock<Body> block(*reinterpret_cast<typename Body::Shared*>(bytes));
  Body::Run(block, args, blockIdx.x);
}

template <class Body>
void CudaDevice::For(int64_t n, const typename Body::Args& args) {
  if (failed() || n <= 0) return;
  ForKernel<Body>
      <<<unsigned((n + kForThreads - 1) / kForThreads), kForThreads, 0, stream_>>>(args, n);
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
