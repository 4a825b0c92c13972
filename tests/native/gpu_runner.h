// Draws a scene, and goes back, with a device and its memory: what gpu/cuda_handlers.cc does,
// without XLA.
//
// Memory has  T* Put(vector), T* Make<T>(count) not initialised, vector Take(T*, count)  and  void*
// Scratch(bytes).
#pragma once

#include "gpu/pipeline.h"
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
  call.low_pass = scene.low_pass;
  call.maps = maps;
  return call;
}

// The calls of a scene, everything in the device's memory.
struct ForwardCalls {
  RasterCall call;
  ForwardResults results;
};
struct BackwardCalls {
  RasterCall call;
  BackwardCall backward;
};

// Numbers of all views' maps: those of the level kGeometry, and of kAll.
struct Counts {
  Counts(const program::Scene& scene, int maps)
      : pixels(scene.num_views * scene.pixels()),
        geometry(maps >= kGeometry ? pixels : 0),
        everything(maps >= kAll ? pixels : 0) {}
  int64_t pixels, geometry, everything;
};

template <class Memory>
ForwardCalls MakeForward(Memory& memory, const program::Scene& scene,
                         const program::Request& request) {
  const Counts counts(scene, request.maps);
  const int64_t contributions = scene.num_views * scene.num_surfels * kContributions;
  const auto make = [&](int64_t count) {
    return count ? memory.template Make<float>(count) : nullptr;
  };
  ForwardCalls calls{MakeCall(memory, scene, request.maps), {}};
  Image& image = calls.results.image;
  image.color = make(3 * counts.pixels);
  image.transmittance = make(counts.pixels);
  image.depth_sum = make(counts.geometry);
  image.median_depth = make(counts.geometry);
  image.normal_sum = make(3 * counts.geometry);
  image.plane_sum = make(counts.geometry);
  image.distortion = make(counts.everything);
  image.last = memory.template Make<int32_t>(counts.pixels);
  image.median_index = memory.template Make<int32_t>(counts.geometry);
  calls.results.contributions =
      request.with_contributions ? memory.template Make<float>(contributions) : nullptr;
  calls.results.status = memory.template Make<int32_t>(2 * scene.num_views);
  // Filled, as not all of it is written and all of it is copied.
  calls.results.kept = {memory.Put(std::vector<uint8_t>(request.kept_bytes, 0xa5)),
                        request.kept_bytes};
  return calls;
}

// image: of the forward call; the backward one reads some of its maps.
template <class Memory>
BackwardCalls MakeBackward(Memory& memory, const program::Scene& scene,
                           const program::Request& request, const Image& image) {
  const Counts counts(scene, request.maps);
  const int64_t n = scene.num_surfels;
  const auto cotangent = [&](uint32_t stream, int64_t count) {
    return count ? memory.Put(program::Cotangent(stream, count)) : nullptr;
  };
  const auto make = [&](int64_t count) { return memory.template Make<float>(count); };
  BackwardCalls calls{MakeCall(memory, scene, request.maps), {}};
  BackwardCall& backward = calls.backward;
  backward.image = image;
  backward.gradient = {cotangent(0, 3 * counts.pixels),   cotangent(1, counts.pixels),
                       cotangent(2, counts.geometry),     cotangent(3, counts.geometry),
                       cotangent(4, 3 * counts.geometry), cotangent(5, counts.geometry),
                       cotangent(6, counts.everything)};
  backward.out = {make(3 * n), make(4 * n), make(2 * n), make(n), make(3 * scene.num_sh * n),
                  nullptr};
  backward.num_probe = request.with_probe ? 4 * n : 0;
  if (request.with_probe) backward.out.probe = make(backward.num_probe);
  backward.camera_gradient = make(16 * scene.num_views);
  backward.is_deterministic = request.is_deterministic;
  return calls;
}

template <class Device, class Memory>
program::Maps RunForward(Device& device, Memory& memory, const program::Scene& scene,
                         const program::Request& request) {
  const Counts counts(scene, request.maps);
  const ForwardCalls calls = MakeForward(memory, scene, request);
  Pipeline<Device>(device, calls.call, request.band_pairs).Forward(calls.results);
  const Image& image = calls.results.image;
  program::Maps maps;
  maps.color = memory.Take(image.color, 3 * counts.pixels);
  maps.transmittance = memory.Take(image.transmittance, counts.pixels);
  maps.depth_sum = memory.Take(image.depth_sum, counts.geometry);
  maps.median_depth = memory.Take(image.median_depth, counts.geometry);
  maps.normal_sum = memory.Take(image.normal_sum, 3 * counts.geometry);
  maps.plane_sum = memory.Take(image.plane_sum, counts.geometry);
  maps.distortion = memory.Take(image.distortion, counts.everything);
  maps.last = memory.Take(image.last, counts.pixels);
  maps.median_index = memory.Take(image.median_index, counts.geometry);
  maps.contributions = memory.Take(calls.results.contributions,
                                   scene.num_views * scene.num_surfels * kContributions);
  maps.status = memory.Take(calls.results.status, 2 * scene.num_views);
  maps.kept = memory.Take(calls.results.kept.data, calls.results.kept.bytes);
  return maps;
}

template <class Device, class Memory>
program::Gradients RunBackward(Device& device, Memory& memory, const program::Scene& scene,
                               const program::Request& request, const program::Maps& maps) {
  const auto put = [&](const auto& values) {
    return values.empty() ? nullptr : memory.Put(values);
  };
  Image image{};
  image.transmittance = put(maps.transmittance);
  image.depth_sum = put(maps.depth_sum);
  image.last = put(maps.last);
  image.median_index = put(maps.median_index);
  BackwardCalls calls = MakeBackward(memory, scene, request, image);
  calls.backward.kept = {memory.Put(maps.kept), int64_t(maps.kept.size())};
  Pipeline<Device>(device, calls.call, request.band_pairs).Backward(calls.backward);
  const int64_t n = scene.num_surfels;
  const SurfelGradients& out = calls.backward.out;
  program::Gradients gradients;
  gradients.means = memory.Take(out.means, 3 * n);
  gradients.quats = memory.Take(out.quats, 4 * n);
  gradients.log_scales = memory.Take(out.log_scales, 2 * n);
  gradients.logit_opacities = memory.Take(out.logit_opacities, n);
  gradients.sh = memory.Take(out.sh, 3 * scene.num_sh * n);
  gradients.camera = memory.Take(calls.backward.camera_gradient, 16 * scene.num_views);
  gradients.probe = memory.Take(out.probe, calls.backward.num_probe);
  return gradients;
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
