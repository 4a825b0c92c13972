// The CUDA kernels that work block by block: blending, and the backward pass.

#define COSURFGS_VARIANT cuda

#include "gpu/cuda_launch.cuh"
#include "gpu/project.h"
#include "gpu/removal.h"

namespace cosurfgs {
namespace cuda {

#define COSURFGS_INSTANTIATE(maps)                                                                \
  template void CudaDevice::Blocks<BlendTileBlock<maps, false>>(int64_t, const BlendArgs&);       \
  template void CudaDevice::Blocks<BlendTileBlock<maps, true>>(int64_t, const BlendArgs&);        \
  template void CudaDevice::Blocks<BlendTileBackwardBlock<maps, false, false>>(int64_t,           \
                                                                               const BlendArgs&); \
  template void CudaDevice::Blocks<BlendTileBackwardBlock<maps, false, true>>(int64_t,            \
                                                                              const BlendArgs&);  \
  template void CudaDevice::Blocks<BlendTileBackwardBlock<maps, true, false>>(int64_t,            \
                                                                              const BlendArgs&);  \
  template void CudaDevice::Blocks<BlendTileBackwardBlock<maps, true, true>>(int64_t,             \
                                                                             const BlendArgs&)

template void CudaDevice::Blocks<BlendTileRemovalBlock>(int64_t, const BlendArgs&);

COSURFGS_INSTANTIATE(kColor);
COSURFGS_INSTANTIATE(kGeometry);
COSURFGS_INSTANTIATE(kAll);

template void CudaDevice::Blocks<ProjectBackwardBlock<0>>(int64_t, const ProjectBackwardArgs&);
template void CudaDevice::Blocks<ProjectBackwardBlock<1>>(int64_t, const ProjectBackwardArgs&);
template void CudaDevice::Blocks<ProjectBackwardBlock<2>>(int64_t, const ProjectBackwardArgs&);
template void CudaDevice::Blocks<ProjectBackwardBlock<3>>(int64_t, const ProjectBackwardArgs&);
template void CudaDevice::Blocks<CameraSumBlock>(int64_t, const CameraSumBlock::Args&);

}  // namespace cuda
}  // namespace cosurfgs
