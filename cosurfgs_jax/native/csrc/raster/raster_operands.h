// The operands and results of the rasterizer's custom calls, the same for every platform: their
// checks and their bindings.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "raster/raster.h"
#include "xla/ffi/api/ffi.h"

namespace cosurfgs {

namespace ffi = xla::ffi;
using FloatBuffer = ffi::Buffer<ffi::F32>;
using IntBuffer = ffi::Buffer<ffi::S32>;
using BoolBuffer = ffi::Buffer<ffi::PRED>;
using ByteBuffer = ffi::Buffer<ffi::U8>;

template <class B>
inline std::string Shape(const B& buffer) {
  std::string text = "[";
  for (size_t i = 0; i < buffer.dimensions().size(); ++i) {
    text += (i ? "," : "") + std::to_string(buffer.dimensions()[i]);
  }
  return text + "]";
}

// Empty if `buffer` has the wanted shape (-1: any), else a message with name, expected and got.
template <class B>
inline std::string Check(const char* name, const B& buffer, std::initializer_list<int64_t> wanted) {
  bool fits = buffer.dimensions().size() == wanted.size();
  size_t i = 0;
  std::string expected = "[";
  for (int64_t size : wanted) {
    fits = fits && (size < 0 || buffer.dimensions()[i] == size);
    expected += (i++ ? "," : "") + (size < 0 ? std::string("any") : std::to_string(size));
  }
  if (fits) return "";
  return std::string("rasterize: ") + name + ": expected shape " + expected + "], got " +
         Shape(buffer) + ". ";
}

// Empty if `buffer` has so many elements, or none where that is allowed.
template <class B>
inline std::string CheckCount(const char* name, const B& buffer, int64_t wanted,
                              bool may_be_empty = false) {
  const int64_t got = static_cast<int64_t>(buffer.element_count());
  if (got == wanted || (may_be_empty && got == 0)) return "";
  return std::string("rasterize: ") + name + ": expected " + std::to_string(wanted) +
         " elements, got " + Shape(buffer) + ". ";
}

// The fields of surfels, which are the last operands or results of a call: `get` takes the index of
// one and says where its buffer is, or why there is none. Sets the pointers of `arrays`, and
// returns what is wrong with the buffers, or "".
template <class Arrays, class Get>
std::string ReadFields(Arrays& arrays, int64_t num_surfels, size_t num_given, Get get) {
  std::string error;
  SurfelParams<float> one;  // only for the sizes of its fields
  size_t index = 0;
  ForEachField(arrays, one, [&](const char* name, auto*& array, const auto& numbers) {
    const size_t i = index++;
    if (i >= num_given) return;
    const ffi::ErrorOr<FloatBuffer> field = get(i);
    if (field.has_error()) {
      error += std::string("rasterize: ") + name + ": " + field.error().message() + ". ";
      return;
    }
    constexpr int64_t kCount = sizeof(numbers) / sizeof(float);
    error += kCount == 1 ? Check(name, *field, {num_surfels})
                         : Check(name, *field, {num_surfels, kCount});
    array = field->typed_data();
  });
  if (num_given != index) {
    error += "rasterize: expected " + std::to_string(index) + " fields of surfels, got " +
             std::to_string(num_given) + ". ";
  }
  return error;
}

// The surfels of the operands. Returns what is wrong with any operand, or "".
inline std::string ReadOperands(const FloatBuffer& sh, const BoolBuffer& alive,
                                const FloatBuffer& camera_from_world, const FloatBuffer& intrinsics,
                                const FloatBuffer& background, const ffi::RemainingArgs& fields,
                                int64_t width, int64_t height, int64_t sh_degree,
                                Surfels& surfels) {
  std::string error = Check("alive", alive, {-1});
  if (!error.empty()) return error;
  const int64_t n = alive.dimensions()[0];
  error +=
      ReadFields(surfels, n, fields.size(), [&](size_t i) { return fields.get<FloatBuffer>(i); }) +
      Check("sh", sh, {n, -1, 3}) + Check("camera_from_world", camera_from_world, {-1, 4, 4}) +
      Check("background", background, {3});
  if (!error.empty()) return error;
  surfels.sh = sh.typed_data();
  surfels.alive = alive.typed_data();
  surfels.num_surfels = n;
  surfels.num_sh = sh.dimensions()[1];
  surfels.sh_degree = static_cast<int>(sh_degree);
  error += Check("intrinsics", intrinsics, {camera_from_world.dimensions()[0], 3, 3});
  if (sh_degree < 0 || sh_degree > 3 || sh.dimensions()[1] < (sh_degree + 1) * (sh_degree + 1)) {
    error +=
        "rasterize: sh_degree: expected 0 to 3 with (sh_degree + 1)^2 coefficients in sh, got " +
        std::to_string(sh_degree) + " with " + std::to_string(sh.dimensions()[1]) + ". ";
  }
  if (width < 1 || height < 1 || width > 32767 || height > 32767) {
    error += "rasterize: image_size: expected 1 to 32767 pixels, got " + std::to_string(height) +
             "x" + std::to_string(width) + ". ";
  }
  return error;
}

// Where the gradients go. Returns what is wrong with the results, or "".
inline std::string ReadGradients(ffi::Result<FloatBuffer>& sh, ffi::Result<FloatBuffer>& probe,
                                 const ffi::RemainingRets& fields, int64_t num_surfels,
                                 SurfelGradients& gradients) {
  gradients.sh = sh->typed_data();
  gradients.probe = probe->element_count() ? probe->typed_data() : nullptr;
  return ReadFields(gradients, num_surfels, fields.size(),
                    [&](size_t i) -> ffi::ErrorOr<FloatBuffer> {
                      auto field = fields.get<FloatBuffer>(i);
                      if (field.has_error()) return ffi::Unexpected(field.error());
                      return **field;
                    });
}

// pixels per view; null where the result was not asked for.
inline float* Slice(ffi::Result<FloatBuffer>& buffer, int64_t view, int64_t size) {
  return buffer->element_count() ? buffer->typed_data() + view * size : nullptr;
}
inline const float* Slice(const FloatBuffer& buffer, int64_t view, int64_t size) {
  return buffer.element_count() ? buffer.typed_data() + view * size : nullptr;
}

// The binding of the forward call, behind the contexts that a platform asks for.
template <class Binding>
auto BindForward(Binding&& contexts) {
  return std::move(contexts)
      .template Arg<FloatBuffer>()  // sh
      .template Arg<BoolBuffer>()   // alive
      .template Arg<FloatBuffer>()  // camera_from_world
      .template Arg<FloatBuffer>()  // intrinsics
      .template Arg<FloatBuffer>()  // background
      .RemainingArgs()              // the fields of ForEachField
      .template Ret<FloatBuffer>()  // color
      .template Ret<FloatBuffer>()  // transmittance
      .template Ret<FloatBuffer>()  // depth_sum
      .template Ret<FloatBuffer>()  // median_depth
      .template Ret<FloatBuffer>()  // normal_sum
      .template Ret<FloatBuffer>()  // plane_sum
      .template Ret<FloatBuffer>()  // distortion
      .template Ret<IntBuffer>()    // last
      .template Ret<IntBuffer>()    // median_index
      .template Ret<FloatBuffer>()  // contributions
      .template Ret<IntBuffer>()    // status
      .template Ret<ByteBuffer>()  // kept for the backward call, in a layout of the platform's; may
                                   // be empty
      .template Attr<int64_t>("width")
      .template Attr<int64_t>("height")
      .template Attr<float>("near")
      .template Attr<float>("low_pass")
      .template Attr<int64_t>("sh_degree")
      .template Attr<int64_t>("maps")
      .template Attr<bool>("with_contributions")
      .template Attr<bool>("orthographic");
}

// The binding of the call that says what removing each surfel changes.
template <class Binding>
auto BindRemoval(Binding&& contexts) {
  return std::move(contexts)
      .template Arg<FloatBuffer>()  // sh
      .template Arg<BoolBuffer>()   // alive
      .template Arg<FloatBuffer>()  // camera_from_world
      .template Arg<FloatBuffer>()  // intrinsics
      .template Arg<FloatBuffer>()  // background
      .RemainingArgs()              // the fields of ForEachField
      .template Ret<FloatBuffer>()  // per surfel: sum of weights, sum of squared changes
      .template Attr<int64_t>("width")
      .template Attr<int64_t>("height")
      .template Attr<float>("near")
      .template Attr<float>("low_pass")
      .template Attr<int64_t>("sh_degree")
      .template Attr<bool>("orthographic");
}

// The binding of the backward call.
template <class Binding>
auto BindBackward(Binding&& contexts) {
  return std::move(contexts)
      .template Arg<FloatBuffer>()  // sh
      .template Arg<BoolBuffer>()   // alive
      .template Arg<FloatBuffer>()  // camera_from_world
      .template Arg<FloatBuffer>()  // intrinsics
      .template Arg<FloatBuffer>()  // background
      .template Arg<FloatBuffer>()  // transmittance
      .template Arg<FloatBuffer>()  // depth_sum
      .template Arg<IntBuffer>()    // last
      .template Arg<IntBuffer>()    // median_index
      .template Arg<FloatBuffer>()  // gradients: color
      .template Arg<FloatBuffer>()  // transmittance
      .template Arg<FloatBuffer>()  // depth_sum
      .template Arg<FloatBuffer>()  // median_depth
      .template Arg<FloatBuffer>()  // normal_sum
      .template Arg<FloatBuffer>()  // plane_sum
      .template Arg<FloatBuffer>()  // distortion
      .template Arg<ByteBuffer>()   // kept by the forward call
      .RemainingArgs()              // the fields of ForEachField
      .template Ret<FloatBuffer>()  // sh
      .template Ret<FloatBuffer>()  // camera_from_world
      .template Ret<FloatBuffer>()  // probe
      .RemainingRets()              // the gradients of the fields of ForEachField
      .template Attr<int64_t>("width")
      .template Attr<int64_t>("height")
      .template Attr<float>("near")
      .template Attr<float>("low_pass")
      .template Attr<int64_t>("sh_degree")
      .template Attr<int64_t>("maps")
      .template Attr<bool>("deterministic");
}

}  // namespace cosurfgs
