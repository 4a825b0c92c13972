// Draws a scene, and goes back, with a device and its memory: what cuda_handlers.cc does, without XLA.
//
// Memory has  T* Put(vector), T* Make<T>(count) not initialised, vector Take(T*, count)  and  void* Scratch(bytes).
#pragma once

#include "gpu_pipeline.h"
#include "gpu_scene.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

template <class Memory>
RasterCall MakeCall(Memory& memory, const program::Scene& scene, int maps) {
  RasterCall call{};
  call.surfels = {memory.Put(scene.means),
                  memory.Put(scene.quats),
                  memory.Put(scene.log_scales),
                  memory.Put(scene.logit_opacities),
                  memory.Put(scene.sh),
                  reinterpret_cast<const bool*>(memory.Put(scene.alive)),
                  scene.num_surfels,
                  scene.num_sh,
                  scene.sh_degree};
  call.camera_from_world = memory.Put(scene.cameras);
  call.intrinsics = memory.Put(scene.intrinsics);
  call.background = memory.Put(std::vector<float>(scene.background, scene.background + 3));
  call.num_views = scene.num_views;
  call.width = scene.width;
  call.height = scene.height;
  call.near = scene.near;
  call.maps = maps;
  return call;
}

template <class Device, class Memory>
program::Maps RunForward(Device& device, Memory& memory, const program::Scene& scene, const program::Request& request) {
  const int64_t pixels = scene.num_views * scene.pixels();
  const int64_t geometry = request.maps >= kGeometry ? pixels : 0, everything = request.maps >= kEverything ? pixels : 0;
  const int64_t contributions = request.with_contributions ? scene.num_views * scene.num_surfels * kContributions : 0;
  const auto make = [&](int64_t count) { return count ? memory.template Make<float>(count) : nullptr; };
  const RasterCall call = MakeCall(memory, scene, request.maps);
  Image image{};
  image.color = make(3 * pixels);
  image.transmittance = make(pixels);
  image.depth_sum = make(geometry);
  image.median_depth = make(geometry);
  image.normal_sum = make(3 * geometry);
  image.plane_sum = make(geometry);
  image.distortion = make(everything);
  image.last = memory.template Make<int32_t>(pixels);
  image.median_index = memory.template Make<int32_t>(pixels);
  ForwardResults results{};
  results.image = image;
  results.contributions = make(contributions);
  results.status = memory.template Make<int32_t>(2 * scene.num_views);
  Pipeline<Device>(device, call, request.band_pairs).Forward(results);
  return {memory.Take(image.color, 3 * pixels),          memory.Take(image.transmittance, pixels),
          memory.Take(image.depth_sum, geometry),        memory.Take(image.median_depth, geometry),
          memory.Take(image.normal_sum, 3 * geometry),   memory.Take(image.plane_sum, geometry),
          memory.Take(image.distortion, everything),     memory.Take(results.contributions, contributions),
          memory.Take(image.last, pixels),
          memory.Take(image.median_index, geometry),  // colour alone has none
          memory.Take(results.status, 2 * scene.num_views)};
}

template <class Device, class Memory>
program::Gradients RunBackward(Device& device, Memory& memory, const program::Scene& scene, const program::Request& request,
                               const program::Maps& maps) {
  const int64_t pixels = scene.num_views * scene.pixels(), n = scene.num_surfels;
  const int64_t geometry = request.maps >= kGeometry ? pixels : 0, everything = request.maps >= kEverything ? pixels : 0;
  const auto put = [&](const auto& values) { return values.empty() ? nullptr : memory.Put(values); };
  const auto cotangent = [&](uint32_t stream, int64_t count) { return put(program::Cotangent(stream, count)); };
  const RasterCall call = MakeCall(memory, scene, request.maps);
  BackwardCall backward{};
  backward.image.transmittance = put(maps.transmittance);
  backward.image.depth_sum = put(maps.depth_sum);
  backward.image.last = put(maps.last);
  backward.image.median_index = put(maps.median_index);
  backward.gradient = {cotangent(0, 3 * pixels),   cotangent(1, pixels),   cotangent(2, geometry),  cotangent(3, geometry),
                       cotangent(4, 3 * geometry), cotangent(5, geometry), cotangent(6, everything)};
  const auto make = [&](int64_t count) { return memory.template Make<float>(count); };
  backward.out = {make(3 * n), make(4 * n), make(2 * n), make(n), make(3 * scene.num_sh * n), make(4 * n)};
  backward.num_probe = 4 * n;
  backward.camera_gradient = make(16 * scene.num_views);
  backward.is_deterministic = request.is_deterministic;
  Pipeline<Device>(device, call, request.band_pairs).Backward(backward);
  const SurfelGradients& out = backward.out;
  return {memory.Take(out.means, 3 * n),           memory.Take(out.quats, 4 * n),
          memory.Take(out.log_scales, 2 * n),      memory.Take(out.logit_opacities, n),
          memory.Take(out.sh, 3 * scene.num_sh * n), memory.Take(backward.camera_gradient, 16 * scene.num_views),
          memory.Take(out.probe, 4 * n)};
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
