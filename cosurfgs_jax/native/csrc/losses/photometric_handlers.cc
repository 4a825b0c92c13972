// The XLA custom call for losses/photometric.h on the CPU.

#include "losses/photometric.h"

#include <algorithm>
#include <cmath>

#include "common/huge_pages.h"
#include "common/parallel_for.h"
#include "losses/photometric_operands.h"
#include "common/scratch.h"

namespace cosurfgs {
namespace {

constexpr int64_t kRowsAtOnce = 16;
// A band computes 10 rows of SSIM's map more than it owns: with 32 rows a quarter of the work.
constexpr int64_t kMinBandRows = 32;

struct Workspace {
  Scratch<float> target, blended, weights;
  Scratch<PhotometricRowSums> sums;
};
struct BandWorkspace {
  Scratch<float> floats;
};

// Sums by row, then in the order of rows: the same bits whatever the threads do.
PhotometricRowSums Total(const PhotometricRowSums* rows, int64_t height) {
  PhotometricRowSums total{};
  for (int64_t y = 0; y < height; ++y) {
    const PhotometricRowSums& row = rows[y];
    total.weight += row.weight, total.num_counted += row.num_counted;
    total.similarity += row.similarity, total.difference += row.difference;
    total.squared += row.squared, total.light += row.light;
    for (int i = 0; i < 12; ++i) total.by_transform[i] += row.by_transform[i];
  }
  return total;
}

ffi::Error PhotometricLosses(ffi::ThreadPool pool, LossMap3 render, LossMap alpha,
                             LossMap transform, LossPhoto photo, LossMask mask,
                             ffi::Result<LossValues> losses, ffi::Result<LossMap3> by_render,
                             ffi::Result<LossMap> by_alpha, ffi::Result<LossMap> by_transform,
                             float color_weight, float ssim_weight, float light_weight) {
  const std::string error = CheckOperands({render, alpha, transform, photo, mask},
                                          {losses, by_render, by_alpha, by_transform});
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const auto shape = photo.dimensions();
  const int64_t height = shape[0], width = shape[1], channels = shape[2], size = height * width;
  const bool has_mask = mask.element_count() > 0;
  AskForHugePages(by_render);
  AskForHugePages(by_alpha);
  Parallel parallel(pool);
  Borrowed<Workspace> work;
  PhotometricRowSums* sums = work->sums.Get(height);
  PhotometricCall call{};
  call.height = height, call.width = width, call.channels = channels;
  call.render = render.typed_data(), call.alpha = alpha.typed_data(),
  call.photo = photo.typed_data();
  call.mask = has_mask ? mask.typed_data() : nullptr;
  std::copy_n(transform.typed_data(), 12, call.transform);
  call.target = work->target.Get(3 * size);
  if (call.has_weights())
    call.blended = work->blended.Get(3 * size), call.weights = work->weights.Get(size);
  call.by_render = by_render->typed_data(), call.by_alpha = by_alpha->typed_data();
  parallel.For((height + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t band) {
    for (int64_t y = band * kRowsAtOnce; y < std::min(height, (band + 1) * kRowsAtOnce); ++y) {
      COSURFGS_DISPATCH(PrepareRow, call, y, &sums[y]);
    }
  });
  const double weight = Total(sums, height).weight;
  const double per_pixel = 1 / std::max(weight, 1.0), per_value = per_pixel / 3;
  call.color_scale = float(color_weight * per_value);
  call.ssim_scale = float(ssim_weight * per_value);
  call.light_scale = float(light_weight * per_pixel);
  // Two bands per thread even out threads that are busy elsewhere.
  const int64_t wanted = parallel.max_threads() == 1 ? 1 : 2 * parallel.max_threads();
  const int64_t num_bands = std::clamp<int64_t>(height / kMinBandRows, 1, wanted);
  const int64_t scratch_floats = COSURFGS_DISPATCH(PhotometricScratchFloats);
  parallel.For(num_bands, [&](int64_t band) {
    Borrowed<BandWorkspace> scratch;
    COSURFGS_DISPATCH(PhotometricRows, call, band * height / num_bands,
                      (band + 1) * height / num_bands, scratch->floats.Get(scratch_floats), sums);
  });
  const PhotometricRowSums total = Total(sums, height);
  // Where no pixel counts, the rounding of SSIM must not be all that is left.
  const double dissimilarity = weight > 0 ? 3 * double(size) - total.similarity : 0;
  losses->typed_data()[0] =
      float(color_weight * per_value * total.difference + ssim_weight * per_value * dissimilarity +
            light_weight * per_pixel * total.light);
  losses->typed_data()[1] = float(-10 * std::log10(total.squared / (3 * total.num_counted)));
  for (int i = 0; i < 12; ++i) by_transform->typed_data()[i] = float(total.by_transform[i]);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsPhotometricLosses, cosurfgs::PhotometricLosses,
    cosurfgs::BindPhotometricLosses(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
