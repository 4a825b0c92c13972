// The XLA custom call for patch.h on the CPU.

#include "patch.h"

#include "parallel_for.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace cosurfgs {
namespace {

using Image = ffi::Buffer<ffi::F32, 2>;
using Planes = ffi::Buffer<ffi::F32, 3>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using Offset = ffi::Buffer<ffi::S32, 1>;
using Flags = ffi::Buffer<ffi::PRED, 2>;

ffi::Error PatchNcc(ffi::ThreadPool pool, Planes planes, Image gray, Image neighbor, Offset offset, Image warp, Vector epipole,
                    Image intrinsics, ffi::Result<Image> score, ffi::Result<Flags> is_valid, ffi::Result<Planes> gradient,
                    int64_t stride, int64_t radius, float noise_variance) {
  const auto lattice = planes.dimensions(), image = gray.dimensions(), other = neighbor.dimensions();
  if (lattice[2] != 3 || offset.element_count() != 2 || warp.element_count() != 9 || epipole.element_count() != 3 ||
      intrinsics.element_count() != 9) {
    return ffi::Error::InvalidArgument(
        "patch_ncc: expected planes [n,m,3], offset [2], warp [3,3], epipole [3] and intrinsics [3,3]");
  }
  if (other[0] < 2 || other[1] < 2 || radius < 1 || radius > kMaxPatchRadius || stride < 1 ||
      other[0] * other[1] > INT32_MAX || image[0] * image[1] > INT32_MAX) {
    return ffi::Error::InvalidArgument("patch_ncc: expected images of 2x2 to 2^31 pixels, a radius of 1 to 5, a stride of 1 or more");
  }
  PatchCall call{gray.typed_data(), neighbor.typed_data(), image[0], image[1], other[0], other[1], lattice[0], lattice[1],
                 stride, offset.typed_data()[0], offset.typed_data()[1], int(radius), {}, {}, 0, 0, 0, 0, noise_variance};
  for (int i = 0; i < 9; ++i) call.warp[i] = warp.typed_data()[i];
  for (int i = 0; i < 3; ++i) call.epipole[i] = epipole.typed_data()[i];
  const float* k = intrinsics.typed_data();
  call.fx = k[0], call.cx = k[2], call.fy = k[4], call.cy = k[5];
  Parallel parallel(pool);
  parallel.For(call.rows, [&](int64_t row) {
    const int64_t first = row * call.columns;
    COSURFGS_DISPATCH(PatchRow, call, row, planes.typed_data() + 3 * first, score->typed_data() + first,
                      is_valid->typed_data() + first, gradient->typed_data() + 3 * first);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(CosurfgsPatchNcc, cosurfgs::PatchNcc,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<cosurfgs::Planes>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Offset>()
                                  .Arg<cosurfgs::Image>()
                                  .Arg<cosurfgs::Vector>()
                                  .Arg<cosurfgs::Image>()
                                  .Ret<cosurfgs::Image>()
                                  .Ret<cosurfgs::Flags>()
                                  .Ret<cosurfgs::Planes>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("radius")
                                  .Attr<float>("noise_variance"));
