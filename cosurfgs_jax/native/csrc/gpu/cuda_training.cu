// The CUDA kernels of a training step besides the rasterizer's: photometric losses and Adam.

#define COSURFGS_VARIANT cuda

#include "gpu/cuda_launch.cuh"
#include "gpu/adam.h"
#include "gpu/photometric.h"

namespace cosurfgs {
namespace cuda {

template void CudaDevice::Blocks<SsimMapBlock<false>>(int64_t, const PhotometricArgs&);
template void CudaDevice::Blocks<SsimMapBlock<true>>(int64_t, const PhotometricArgs&);
template void CudaDevice::Blocks<PhotometricGradientBlock<false>>(int64_t, const PhotometricArgs&);
template void CudaDevice::Blocks<PhotometricGradientBlock<true>>(int64_t, const PhotometricArgs&);
template void CudaDevice::Blocks<SumRowsBlock>(int64_t, const SumRowsArgs&);
template void CudaDevice::For<WritePhotometricLosses>(int64_t, const PhotometricArgs&);
template void CudaDevice::For<AdamFour>(int64_t, const AdamArgs&);

}  // namespace cuda
}  // namespace cosurfgs
