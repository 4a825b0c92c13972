// What the GPU's results are compared with: the same bodies, compiled by the C++ compiler for the
// host.
#pragma once

#include "gpu_scene.h"
#include "gpu_training_scene.h"

namespace cosurfgs {
namespace program {

Maps ReferenceForward(const Scene& scene, const Request& request);
Gradients ReferenceBackward(const Scene& scene, const Request& request, const Maps& maps);
TrainingResults ReferenceTraining(const TrainingShape& shape);

}  // namespace program
}  // namespace cosurfgs
