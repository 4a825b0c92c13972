// XLA FFI handlers of the rasterizer on CPUs. Operand checks, then views one after the other, tiles
// over XLA's threads.
//
// The backward call projects and bins again instead of keeping what the forward call made: that
// costs a few milliseconds and saves 128 bytes per surfel and view between the two.

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>

#include "raster/binning.h"
#include "common/huge_pages.h"
#include "raster/raster_operands.h"

namespace cosurfgs {
namespace {

struct ForwardScratch {
  BinningScratch binning;
  Scratch<int64_t> offsets;
  Scratch<float> rows;
};

struct HitScratch {
  Scratch<float> numbers;
  Scratch<uint16_t> where;
  Scratch<int32_t> ends;
  HitMemory Get(int64_t num_surfels) {
    return {numbers.Get(HitMemory::num_numbers(num_surfels)),
            where.Get(HitMemory::num_hits(num_surfels)), ends.Get(num_surfels)};
  }
  // Keeps what usual tiles need: 2 KB a surfel, for each thread.
  void DropLarge(int64_t num_surfels) {
    constexpr int64_t kUsual = 4096;
    if (num_surfels <= kUsual) return;
    numbers.Drop();
    where.Drop();
    ends.Drop();
  }
};

struct BackwardScratch {
  BinningScratch binning;
  Scratch<int64_t> offsets;
  Scratch<float> rows, sums;
  Scratch<double> camera;
};

// Pair rows in memory at a time: 4 M rows of 128 bytes are 512 MB.
constexpr int64_t kMaxBandPairs = int64_t(4) << 20;
constexpr int64_t kSurfelChunk = 1024;

// Offsets of the pair rows of a band of tile rows, in drawing order; returns their number.
int64_t PairOffsets(const Binned& binned, int first_tile_row, int end_tile_row, int64_t* offsets) {
  int64_t total = 0;
  for (int32_t i = 0; i < binned.num_drawn; ++i) {
    offsets[binned.order[i]] = total;
    total += PairsInRows(binned.boxes[i], first_tile_row, end_tile_row);
  }
  return total;
}

// Tiles per task: a 4K image has 30,000 tiles.
constexpr int kTilesPerTask = 4;

template <class Function>
void ForTiles(Parallel& parallel, int first, int end, Function fn) {
  parallel.For((end - first + kTilesPerTask - 1) / kTilesPerTask, [&](int64_t task) {
    const int begin = first + static_cast<int>(task) * kTilesPerTask;
    for (int tile = begin; tile < std::min(end, begin + kTilesPerTask); ++tile) fn(tile);
  });
}

// Calls fn(id, number of pairs) for every drawn surfel.
template <class Function>
void ForDrawn(Parallel& parallel, const Binned& binned, Function fn) {
  parallel.For((binned.num_drawn + kSurfelChunk - 1) / kSurfelChunk, [&](int64_t chunk) {
    const int64_t end = std::min<int64_t>(binned.num_drawn, (chunk + 1) * kSurfelChunk);
    for (int64_t i = chunk * kSurfelChunk; i < end; ++i)
      fn(binned.order[i], PairsInRows(binned.boxes[i], 0, binned.tiles_y));
  });
}

ffi::Error Forward(ffi::ThreadPool pool, FloatBuffer sh, BoolBuffer alive,
                   FloatBuffer camera_from_world, FloatBuffer intrinsics, FloatBuffer background,
                   ffi::RemainingArgs fields, ffi::Result<FloatBuffer> color,
                   ffi::Result<FloatBuffer> transmittance, ffi::Result<FloatBuffer> depth_sum,
                   ffi::Result<FloatBuffer> median_depth, ffi::Result<FloatBuffer> normal_sum,
                   ffi::Result<FloatBuffer> plane_sum, ffi::Result<FloatBuffer> distortion,
                   ffi::Result<IntBuffer> last, ffi::Result<IntBuffer> median_index,
                   ffi::Result<FloatBuffer> contributions, ffi::Result<IntBuffer> status,
                   ffi::Result<ByteBuffer>, int64_t width, int64_t height, float near,
                   float low_pass, int64_t sh_degree, int64_t maps, bool with_contributions,
                   bool orthographic) {
  Surfels surfels;
  const std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background,
                                         fields, width, height, sh_degree, surfels);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const int64_t num_views = camera_from_world.dimensions()[0], size = num_views * width * height;
  const bool has_geometry = maps >= kGeometry;
  const std::string wrong =
      CheckCount("color", *color, 3 * size) + CheckCount("transmittance", *transmittance, size) +
      CheckCount("depth_sum", *depth_sum, size, !has_geometry) +
      CheckCount("median_depth", *median_depth, size, !has_geometry) +
      CheckCount("normal_sum", *normal_sum, 3 * size, !has_geometry) +
      CheckCount("plane_sum", *plane_sum, size, !has_geometry) +
      CheckCount("distortion", *distortion, size, maps < kAll) + CheckCount("last", *last, size) +
      CheckCount("median_index", *median_index, size, !has_geometry) +
      CheckCount("contributions", *contributions, kContributions * surfels.num_surfels * num_views,
                 !with_contributions) +
      CheckCount("status", *status, 2 * num_views);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  for (auto* result :
       {&color, &transmittance, &depth_sum, &median_depth, &normal_sum, &plane_sum, &distortion}) {
    AskForHugePages(*result);
  }
  AskForHugePages(last);
  AskForHugePages(median_index);
  Borrowed<ForwardScratch> scratch;
  Parallel parallel(pool);
  const int64_t pixels = width * height, n = surfels.num_surfels;
  for (int64_t v = 0; v < camera_from_world.dimensions()[0]; ++v) {
    const View view =
        MakeView(camera_from_world.typed_data() + 16 * v, intrinsics.typed_data() + 9 * v, width,
                 height, near, low_pass, orthographic);
    const Binned binned = ProjectAndBin(surfels, view, parallel, scratch->binning);
    const double start = Now();
    Image image{Slice(color, v, 3 * pixels),
                Slice(transmittance, v, pixels),
                Slice(depth_sum, v, pixels),
                Slice(median_depth, v, pixels),
                Slice(normal_sum, v, 3 * pixels),
                Slice(plane_sum, v, pixels),
                Slice(distortion, v, pixels),
                last->typed_data() + v * pixels,
                maps >= kGeometry ? median_index->typed_data() + v * pixels : nullptr};
    PairRows rows{nullptr, nullptr, 0};
    if (with_contributions) {
      int64_t* offsets = scratch->offsets.Get(n);
      const int64_t pairs = PairOffsets(binned, 0, binned.tiles_y, offsets);
      rows = {scratch->rows.Get(kContributions * pairs), offsets, 0};
    }
    ForTiles(parallel, 0, binned.num_tiles(), [&](int tile) {
      COSURFGS_DISPATCH(BlendTile, binned.tile(tile), binned.records, view, background.typed_data(),
                        static_cast<int>(maps), image, with_contributions ? &rows : nullptr);
    });
    if (with_contributions) {
      float* out = contributions->typed_data() + kContributions * n * v;
      std::memset(out, 0, kContributions * n * sizeof(float));
      ForDrawn(parallel, binned, [&](int32_t id, int64_t pairs) {
        const float* row = rows.rows + kContributions * rows.offset[id];
        float* target = out + kContributions * id;
        for (; pairs > 0; --pairs, row += kContributions) {
          target[0] += row[0];
          target[1] = std::max(target[1], row[1]);
          target[2] += row[2];
          target[3] += row[3];
        }
      });
    }
    status->typed_data()[2 * v] = binned.num_invalid;
    status->typed_data()[2 * v + 1] =
        static_cast<int32_t>(std::min<int64_t>(binned.tile_begin[binned.num_tiles()], INT32_MAX));
    AddStageTime(kStageBlend, Now() - start);
  }
  return ffi::Error::Success();
}

ffi::Error Removal(ffi::ThreadPool pool, FloatBuffer sh, BoolBuffer alive,
                   FloatBuffer camera_from_world, FloatBuffer intrinsics, FloatBuffer background,
                   ffi::RemainingArgs fields, ffi::Result<FloatBuffer> effects, int64_t width,
                   int64_t height, float near, float low_pass, int64_t sh_degree,
                   bool orthographic) {
  Surfels surfels;
  const std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background,
                                         fields, width, height, sh_degree, surfels);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const int64_t n = surfels.num_surfels;
  const std::string wrong =
      CheckCount("effects", *effects, kRemoval * n * camera_from_world.dimensions()[0]);
  if (!wrong.empty()) return ffi::Error::InvalidArgument(wrong);
  Borrowed<ForwardScratch> scratch;
  Parallel parallel(pool);
  for (int64_t v = 0; v < camera_from_world.dimensions()[0]; ++v) {
    const View view =
        MakeView(camera_from_world.typed_data() + 16 * v, intrinsics.typed_data() + 9 * v, width,
                 height, near, low_pass, orthographic);
    const Binned binned = ProjectAndBin(surfels, view, parallel, scratch->binning);
    const double start = Now();
    int64_t* offsets = scratch->offsets.Get(n);
    const int64_t pairs = PairOffsets(binned, 0, binned.tiles_y, offsets);
    const PairRows rows{scratch->rows.Get(kRemoval * pairs), offsets, 0};
    std::atomic<bool> has_no_memory{false};  // a loop's function must not throw
    ForTiles(parallel, 0, binned.num_tiles(), [&](int index) {
      const Tile tile = binned.tile(index);
      try {
        Borrowed<HitScratch> hits;
        COSURFGS_DISPATCH(BlendTileRemoval, tile, binned.records, view, background.typed_data(),
                          hits->Get(tile.count), rows);
        hits->DropLarge(tile.count);
      } catch (const std::bad_alloc&) {
        has_no_memory = true;
      }
    });
    if (has_no_memory) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                        "raster removal: there is no memory for the hits of a tile");
    }
    float* out = effects->typed_data() + kRemoval * n * v;
    std::memset(out, 0, kRemoval * n * sizeof(float));
    ForDrawn(parallel, binned, [&](int32_t id, int64_t pairs) {
      const float* row = rows.rows + kRemoval * offsets[id];
      for (; pairs > 0; --pairs, row += kRemoval) {
        for (int k = 0; k < kRemoval; ++k) out[kRemoval * id + k] += row[k];
      }
    });
    AddStageTime(kStageBlend, Now() - start);
  }
  return ffi::Error::Success();
}

// One view's gradients: band by band of tile rows, so that the pair rows stay within kMaxBandPairs
// (or one tile row).
void BackwardView(const Surfels& surfels, const View& view, const float* background, int maps,
                  const Image& image, const ImageGradient& gradient, const SurfelGradients& out,
                  float* camera_gradient, Parallel& parallel, BackwardScratch& scratch) {
  const Binned binned = ProjectAndBin(surfels, view, parallel, scratch.binning);
  const double start = Now();
  const int row_size = GradientRowSize(maps);
  int64_t* offsets = scratch.offsets.Get(surfels.num_surfels);
  float* sums = scratch.sums.Get(int64_t(row_size) * binned.num_drawn);
  const int64_t num_chunks = (binned.num_drawn + kSurfelChunk - 1) / kSurfelChunk;
  auto chunk_end = [&](int64_t chunk) {
    return std::min<int64_t>(binned.num_drawn, (chunk + 1) * kSurfelChunk);
  };
  parallel.For(num_chunks, [&](int64_t chunk) {
    std::memset(sums + chunk * kSurfelChunk * row_size, 0,
                (chunk_end(chunk) - chunk * kSurfelChunk) * row_size * sizeof(float));
  });
  for (int first = 0, end; first < binned.tiles_y; first = end) {
    end = first + 1;
    const auto pairs_before = [&](int tile_row) {
      return binned.tile_begin[int64_t(tile_row) * binned.tiles_x];
    };
    while (end < binned.tiles_y && pairs_before(end + 1) - pairs_before(first) <= kMaxBandPairs)
      ++end;
    const int64_t pairs = PairOffsets(binned, first, end, offsets);
    const PairRows rows{scratch.rows.Get(row_size * pairs), offsets, first};
    ForTiles(parallel, first * binned.tiles_x, end * binned.tiles_x, [&](int tile) {
      COSURFGS_DISPATCH(BlendTileBackward, binned.tile(tile), binned.records, view, background,
                        maps, image, gradient, rows);
    });
    parallel.For(num_chunks, [&](int64_t chunk) {
      for (int64_t i = chunk * kSurfelChunk; i < chunk_end(chunk); ++i) {
        const float* row = rows.rows + row_size * offsets[binned.order[i]];
        float* target = sums + row_size * i;
        for (int64_t pair = PairsInRows(binned.boxes[i], first, end); pair > 0;
             --pair, row += row_size) {
          for (int k = 0; k < row_size; ++k) target[k] += row[k];
        }
      }
    });
  }
  const double blended = Now();
  AddStageTime(kStageBlendBackward, blended - start);

  // The camera's gradient is a sum over surfels: per chunk, then over chunks in order.
  double* camera = scratch.camera.Get(12 * std::max<int64_t>(1, num_chunks));
  parallel.For(num_chunks, [&](int64_t chunk) {
    double* part = camera + 12 * chunk;
    std::memset(part, 0, 12 * sizeof(double));
    COSURFGS_DISPATCH(ProjectBackward, surfels, view, binned.order, chunk * kSurfelChunk,
                      chunk_end(chunk), sums, row_size, out, part);
  });
  double total[12] = {};
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    for (int i = 0; i < 12; ++i) total[i] += camera[12 * chunk + i];
  }
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) camera_gradient[4 * i + j] = static_cast<float>(total[3 * i + j]);
    camera_gradient[4 * i + 3] = static_cast<float>(total[9 + i]);
  }
  AddStageTime(kStageProjectBackward, Now() - blended);
}

void Zero(Parallel& parallel, float* data, int64_t count) {
  constexpr int64_t kChunk = 1 << 18;
  parallel.For((count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    std::memset(data + chunk * kChunk, 0, std::min(kChunk, count - chunk * kChunk) * sizeof(float));
  });
}

ffi::Error Backward(ffi::ThreadPool pool, FloatBuffer sh, BoolBuffer alive,
                    FloatBuffer camera_from_world, FloatBuffer intrinsics, FloatBuffer background,
                    FloatBuffer transmittance, FloatBuffer depth_sum, IntBuffer last,
                    IntBuffer median_index, FloatBuffer g_color, FloatBuffer g_transmittance,
                    FloatBuffer g_depth_sum, FloatBuffer g_median_depth, FloatBuffer g_normal_sum,
                    FloatBuffer g_plane_sum, FloatBuffer g_distortion, ByteBuffer,
                    ffi::RemainingArgs fields, ffi::Result<FloatBuffer> out_sh,
                    ffi::Result<FloatBuffer> out_camera, ffi::Result<FloatBuffer> out_probe,
                    ffi::RemainingRets out_fields, int64_t width, int64_t height, float near,
                    float low_pass, int64_t sh_degree, int64_t maps, bool) {
  Surfels surfels;
  std::string error = ReadOperands(sh, alive, camera_from_world, intrinsics, background, fields,
                                   width, height, sh_degree, surfels);
  SurfelGradients out;
  error += ReadGradients(out_sh, out_probe, out_fields, surfels.num_surfels, out);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  const int64_t num_views = camera_from_world.dimensions()[0], size = num_views * width * height;
  const bool has_geometry = maps >= kGeometry;
  error = CheckCount("transmittance", transmittance, size) +
          CheckCount("depth_sum", depth_sum, size, maps < kAll) + CheckCount("last", last, size) +
          CheckCount("median_index", median_index, size, !has_geometry) +
          CheckCount("cotangent of color", g_color, 3 * size) +
          CheckCount("cotangent of transmittance", g_transmittance, size) +
          CheckCount("cotangent of depth_sum", g_depth_sum, size, !has_geometry) +
          CheckCount("cotangent of median_depth", g_median_depth, size, !has_geometry) +
          CheckCount("cotangent of normal_sum", g_normal_sum, 3 * size, !has_geometry) +
          CheckCount("cotangent of plane_sum", g_plane_sum, size, !has_geometry) +
          CheckCount("cotangent of distortion", g_distortion, size, maps < kAll) +
          CheckCount("gradient of sh", *out_sh, 3 * surfels.num_sh * surfels.num_surfels) +
          CheckCount("gradient of camera_from_world", *out_camera, 16 * num_views) +
          CheckCount("gradient probe", *out_probe, 4 * surfels.num_surfels, true);
  if (!error.empty()) return ffi::Error::InvalidArgument(error);
  Borrowed<BackwardScratch> scratch;
  Parallel parallel(pool);
  const double start = Now();
  const auto zero = [&](ffi::Result<FloatBuffer> result) {
    AskForHugePages(result);
    Zero(parallel, result->typed_data(), static_cast<int64_t>(result->element_count()));
  };
  for (size_t i = 0; i < out_fields.size(); ++i) zero(*out_fields.get<FloatBuffer>(i));
  for (const auto& result : {out_sh, out_camera, out_probe}) zero(result);
  AddStageTime(kStageProjectBackward, Now() - start);
  const int64_t pixels = width * height;
  for (int64_t v = 0; v < camera_from_world.dimensions()[0]; ++v) {
    const View view =
        MakeView(camera_from_world.typed_data() + 16 * v, intrinsics.typed_data() + 9 * v, width,
                 height, near, low_pass, false);
    Image image{};
    image.transmittance = transmittance.typed_data() + v * pixels;
    image.last = last.typed_data() + v * pixels;
    image.depth_sum = depth_sum.element_count() ? depth_sum.typed_data() + v * pixels : nullptr;
    image.median_index =
        median_index.element_count() ? median_index.typed_data() + v * pixels : nullptr;
    const ImageGradient gradient{
        Slice(g_color, v, 3 * pixels),      Slice(g_transmittance, v, pixels),
        Slice(g_depth_sum, v, pixels),      Slice(g_median_depth, v, pixels),
        Slice(g_normal_sum, v, 3 * pixels), Slice(g_plane_sum, v, pixels),
        Slice(g_distortion, v, pixels)};
    BackwardView(surfels, view, background.typed_data(), static_cast<int>(maps), image, gradient,
                 out, out_camera->typed_data() + 16 * v, parallel, *scratch);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace cosurfgs

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsRasterForward, cosurfgs::Forward,
    cosurfgs::BindForward(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsRasterRemoval, cosurfgs::Removal,
    cosurfgs::BindRemoval(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));

// Its attribute `deterministic` has nothing to choose here: sums always have one order.
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    CosurfgsRasterBackward, cosurfgs::Backward,
    cosurfgs::BindBackward(xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>()));
