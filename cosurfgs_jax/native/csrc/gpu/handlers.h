// From the operands of the custom calls to the pipeline, for any device.
#pragma once

#include "gpu/pipeline.h"
#include "raster/raster_operands.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// device.Finish() says whether all went well, as an ffi::Error.
template <class Device>
ffi::Error Forward(Device& device, FloatBuffer sh, BoolBuffer alive, FloatBuffer camera_from_world,
                   FloatBuffer intrinsics, FloatBuffer background, ffi::RemainingArgs fields,
                   ffi::Result<FloatBuffer> color, ffi::Result<FloatBuffer> transmittance,
                   ffi::Result<FloatBuffer> depth_sum, ffi::Result<FloatBuffer> median_depth,
                   ffi::Result<FloatBuffer> normal_sum, ffi::Result<FloatBuffer> plane_sum,
                   ffi::Result<FloatBuffer> distortion, ffi::Result<IntBuffer> last,
                   ffi::Result<IntBuffer> median_index, ffi::Result<FloatBuffer> contributions,
                   ffi::Result<IntBuffer> status, ffi::Result<ByteBuffer> kept, int64_t width,
                   int64_t height, float near, float low_pass, int64_t sh_degree, int64_t maps,
                   bool with_contributions, bool orthographic) {
  Surfels surfels;
  const std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background,
                                         fields, width, height, sh_degree, surfels);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const RasterCall call{surfels,
                        camera_from_world.typed_data(),
                        intrinsics.typed_data(),
                        background.typed_data(),
                        camera_from_world.dimensions()[0],
                        int(width),
                        int(height),
                        near,
                        low_pass,
                        int(maps),
                        orthographic};
  const Image image{
      Slice(color, 0, 0),        Slice(transmittance, 0, 0), Slice(depth_sum, 0, 0),
      Slice(median_depth, 0, 0), Slice(normal_sum, 0, 0),    Slice(plane_sum, 0, 0),
      Slice(distortion, 0, 0),   last->typed_data(),         median_index->typed_data()};
  Pipeline<Device>(device, call, device.max_band_pairs())
      .Forward({image,
                with_contributions ? contributions->typed_data() : nullptr,
                status->typed_data(),
                {kept->typed_data(), int64_t(kept->element_count())}});
  return device.Finish();
}

template <class Device>
ffi::Error Removal(Device& device, FloatBuffer sh, BoolBuffer alive, FloatBuffer camera_from_world,
                   FloatBuffer intrinsics, FloatBuffer background, ffi::RemainingArgs fields,
                   ffi::Result<FloatBuffer> effects, int64_t width, int64_t height, float near,
                   float low_pass, int64_t sh_degree, bool orthographic) {
  Surfels surfels;
  const std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background,
                                         fields, width, height, sh_degree, surfels);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const RasterCall call{surfels,
                        camera_from_world.typed_data(),
                        intrinsics.typed_data(),
                        background.typed_data(),
                        camera_from_world.dimensions()[0],
                        int(width),
                        int(height),
                        near,
                        low_pass,
                        kColor,
                        orthographic};
  Pipeline<Device>(device, call, device.max_band_pairs()).Removal(effects->typed_data());
  return device.Finish();
}

template <class Device>
ffi::Error Backward(Device& device, FloatBuffer sh, BoolBuffer alive, FloatBuffer camera_from_world,
                    FloatBuffer intrinsics, FloatBuffer background, FloatBuffer transmittance,
                    FloatBuffer depth_sum, IntBuffer last, IntBuffer median_index,
                    FloatBuffer g_color, FloatBuffer g_transmittance, FloatBuffer g_depth_sum,
                    FloatBuffer g_median_depth, FloatBuffer g_normal_sum, FloatBuffer g_plane_sum,
                    FloatBuffer g_distortion, ByteBuffer kept, ffi::RemainingArgs fields,
                    ffi::Result<FloatBuffer> out_sh, ffi::Result<FloatBuffer> out_camera,
                    ffi::Result<FloatBuffer> out_probe, ffi::RemainingRets out_fields,
                    int64_t width, int64_t height, float near, float low_pass, int64_t sh_degree,
                    int64_t maps, bool deterministic) {
  Surfels surfels;
  std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background, fields,
                                   width, height, sh_degree, surfels);
  SurfelGradients out;
  error += ReadGradients(out_sh, out_probe, out_fields, surfels.num_surfels, out);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const RasterCall call{surfels,
                        camera_from_world.typed_data(),
                        intrinsics.typed_data(),
                        background.typed_data(),
                        camera_from_world.dimensions()[0],
                        int(width),
                        int(height),
                        near,
                        low_pass,
                        int(maps),
                        false};
  BackwardCall backward{};
  backward.image.transmittance = transmittance.typed_data();
  backward.image.depth_sum = depth_sum.element_count() ? depth_sum.typed_data() : nullptr;
  backward.image.last = last.typed_data();
  backward.image.median_index = median_index.element_count() ? median_index.typed_data() : nullptr;
  backward.gradient = {Slice(g_color, 0, 0),      Slice(g_transmittance, 0, 0),
                       Slice(g_depth_sum, 0, 0),  Slice(g_median_depth, 0, 0),
                       Slice(g_normal_sum, 0, 0), Slice(g_plane_sum, 0, 0),
                       Slice(g_distortion, 0, 0)};
  backward.out = out;
  backward.num_probe = int64_t(out_probe->element_count());
  backward.camera_gradient = out_camera->typed_data();
  backward.is_deterministic = deterministic;
  backward.kept = {kept.typed_data(), int64_t(kept.element_count())};
  Pipeline<Device>(device, call, device.max_band_pairs()).Backward(backward);
  return device.Finish();
}

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
