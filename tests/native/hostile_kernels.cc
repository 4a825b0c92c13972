// The CPU kernels alone, without JAX, on operands of any content: to be built with sanitizers, for
// one instruction set (tests/parity/test_hostile_kernels.py). Shapes are those that the handlers
// let through, and each array lies in memory of its own that is exactly as long as it should be.
// Numbers are NaN, infinite, huge, tiny or ordinary: what comes out is not looked at, only that
// nothing is read or written elsewhere and no operation is undefined.
//   hostile_kernels [NUMBER OF ROUNDS] [FIRST SEED]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "losses/geometric_losses.h"
#include "losses/photometric.h"
#include "optim/adam.h"
#include "raster/raster.h"

namespace cosurfgs {
namespace {

namespace kernels = COSURFGS_VARIANT;

// Numbers of one round: with a chance of its own, each is a hostile one.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : random_(seed), share_(Pick({0.0, 0.02, 0.5})) {}

  int64_t Count(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  bool Chance(double share) { return std::uniform_real_distribution<>(0, 1)(random_) < share; }
  template <class T>
  T Pick(std::initializer_list<T> of) {
    return of.begin()[Count(0, int64_t(of.size()) - 1)];
  }
  float Float() {
    using Limits = std::numeric_limits<float>;
    if (!Chance(share_)) return std::normal_distribution<float>(0.5f, 1.0f)(random_);
    return Pick({Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity(), Limits::max(),
                 -Limits::max(), Limits::denorm_min(), 0.0f, -0.0f, 1e9f, -1e9f, 1e20f, 1e-30f,
                 16777217.0f, 2147483648.0f, -2147483904.0f});
  }
  int32_t Integer() { return Pick({0, 1, -1, 2, 127, 128, 129, 100000, INT32_MAX, INT32_MIN}); }
  std::vector<float> Floats(int64_t count) {
    std::vector<float> all(count);
    for (float& one : all) one = Float();
    return Exact(all);
  }
  std::vector<uint8_t> Bytes(int64_t count) {
    std::vector<uint8_t> all(count);
    for (uint8_t& one : all) one = uint8_t(Pick({0, 1, 127, 128, 255}));
    return Exact(all);
  }
  std::unique_ptr<bool[]> Flags(int64_t count) {
    std::unique_ptr<bool[]> all(new bool[count]);
    const double share = Pick({0.7, 1.0});
    for (int64_t i = 0; i < count; ++i) all[i] = Chance(share);
    return all;
  }
  void Fill(float* out, int count) {
    for (int i = 0; i < count; ++i) out[i] = Float();
  }

 private:
  template <class T>
  static std::vector<T> Exact(std::vector<T> all) {
    all.shrink_to_fit();
    return all;
  }

  std::mt19937_64 random_;
  double share_;
};

void Adam(Numbers& numbers) {
  const int64_t rows = numbers.Count(0, 200), floats = numbers.Count(0, 48), size = rows * floats;
  const auto rates = numbers.Floats(floats), learns = numbers.Floats(floats);
  const auto gradient = numbers.Floats(size);
  auto values = numbers.Floats(size), mu = numbers.Floats(size), nu = numbers.Floats(size);
  const auto alive = numbers.Flags(rows);
  const float inverse = 1 / (1 - std::pow(0.9f, float(numbers.Integer())));
  const AdamCall call{floats,        rates.data(), learns.data(), alive.get(), gradient.data(),
                      values.data(), mu.data(),    nu.data(),     0.9f,        0.999f,
                      0.1f,          0.001f,       1e-15f,        inverse,     inverse};
  std::vector<float> scratch(2 * kAdamRows * floats);
  kernels::AdamRows(call, 0, rows, scratch.data());

  std::vector<int32_t> missed(rows);
  for (int32_t& one : missed) one = numbers.Integer();
  const auto drift = numbers.Floats(numbers.Count(1, 130));
  const CatchUpCall late{floats,
                         rates.data(),
                         drift.data(),
                         int64_t(drift.size()),
                         numbers.Integer(),
                         alive.get(),
                         missed.data(),
                         values.data(),
                         mu.data(),
                         nu.data(),
                         std::log(0.9f),
                         std::log(0.999f),
                         1e-15f};
  kernels::CatchUpRows(late, 0, rows);
}

void Photometric(Numbers& numbers) {
  const int64_t height = numbers.Pick<int64_t>({1, 2, 11, numbers.Count(1, 50)});
  const int64_t width = numbers.Pick<int64_t>({1, 2, 7, 300, numbers.Count(1, 50)});
  const int64_t size = height * width, channels = numbers.Count(3, 4);
  const auto render = numbers.Floats(3 * size), alpha = numbers.Floats(size);
  const auto photo = numbers.Bytes(channels * size);
  const auto mask = numbers.Flags(size);
  std::vector<float> target(3 * size), blended(3 * size), weights(size), grad_render(3 * size),
      grad_alpha(size), scratch(kernels::PhotometricScratchFloats());
  PhotometricCall call{};
  call.height = height, call.width = width, call.channels = channels;
  call.render = render.data(), call.alpha = alpha.data(), call.photo = photo.data();
  call.mask = numbers.Chance(0.5) ? mask.get() : nullptr;
  numbers.Fill(call.transform, 12);
  call.color_scale = numbers.Float(), call.ssim_scale = numbers.Float();
  call.light_scale = numbers.Float();
  call.target = target.data(), call.blended = blended.data(), call.weights = weights.data();
  call.grad_render = grad_render.data(), call.grad_alpha = grad_alpha.data();
  std::vector<PhotometricRowSums> sums(height);
  for (int64_t y = 0; y < height; ++y) kernels::PrepareRow(call, y, &sums[y]);
  const int64_t middle = numbers.Count(0, height);
  kernels::PhotometricRows(call, 0, middle, scratch.data(), sums.data());
  kernels::PhotometricRows(call, middle, height, scratch.data(), sums.data());
}

Pinhole AnyPinhole(Numbers& numbers) {
  if (numbers.Chance(0.5)) return {40.0f, 44.0f, 20.0f, 15.0f};
  return {numbers.Float(), numbers.Float(), numbers.Float(), numbers.Float()};
}

void PlaneDepth(Numbers& numbers) {
  const int64_t width = numbers.Count(0, 40);
  const auto normal = numbers.Floats(3 * width), plane = numbers.Floats(width);
  const auto light = numbers.Floats(width), cotangent = numbers.Floats(width);
  PlaneDepthCall call{width, normal.data(),       plane.data(), light.data(),
                      {},    AnyPinhole(numbers), 0.5f,         0.05f};
  numbers.Fill(call.rotation, 9);
  std::vector<float> depth(width), grad_normal(3 * width), grad_plane(width);
  double rotation[9];
  kernels::PlaneDepthRow(call, 0, depth.data(), numbers.Flags(width).get());
  kernels::PlaneDepthBackwardRow(call, 0, cotangent.data(), grad_normal.data(), grad_plane.data(),
                                 rotation);
}

void SingleView(Numbers& numbers) {
  const int64_t height = numbers.Count(3, 20), width = numbers.Count(3, 40), size = height * width;
  const auto depth = numbers.Floats(size), normal = numbers.Floats(3 * size);
  const auto alpha = numbers.Floats(size), gray = numbers.Floats(size), mask = numbers.Floats(size);
  SingleViewCall call{height,
                      width,
                      depth.data(),
                      normal.data(),
                      alpha.data(),
                      gray.data(),
                      numbers.Chance(0.5) ? mask.data() : nullptr,
                      {},
                      AnyPinhole(numbers),
                      numbers.Float(),
                      numbers.Float()};
  numbers.Fill(call.rotation, 9);
  std::vector<float> pulls(4 * size), grad_depth(size), grad_normal(3 * size);
  for (int64_t y = 1; y < height - 1; ++y) {
    float* const row[4] = {&pulls[y * width], &pulls[size + y * width],
                           &pulls[2 * size + y * width], &pulls[3 * size + y * width]};
    kernels::SteepestRow(gray.data(), width, y);
    kernels::SingleViewRow(call, y, row, &grad_normal[3 * y * width]);
  }
  for (int64_t y = 0; y < height; ++y)
    kernels::GatherRow(pulls.data(), height, width, y, &grad_depth[y * width]);
}

// Both cameras near each other, or anywhere: the handler relates their poses.
void RelateViews(Numbers& numbers, MultiViewCall& call) {
  const float near[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  const bool is_near = numbers.Chance(0.6);
  for (int i = 0; i < 9; ++i) {
    call.rotation[i] = call.neighbor_rotation[i] = is_near ? near[i] : numbers.Float();
    call.patch.warp[i] = is_near ? near[i] : numbers.Float();
  }
  for (int i = 0; i < 3; ++i) {
    call.neighbor_translation[i] = is_near ? 0.01f : numbers.Float();
    call.patch.epipole[i] = is_near ? 0.3f : numbers.Float();
  }
  call.camera = AnyPinhole(numbers), call.neighbor = AnyPinhole(numbers);
  call.patch.fx = call.camera.fx, call.patch.fy = call.camera.fy;
  call.patch.cx = call.camera.cx, call.patch.cy = call.camera.cy;
}

void MultiView(Numbers& numbers) {
  const int64_t height = numbers.Count(3, 20), width = numbers.Count(3, 40), size = height * width;
  const int64_t dilation = numbers.Count(1, 3), stride = numbers.Count(1, 4);
  const int64_t photo_height = height * dilation + numbers.Count(0, dilation - 1);
  const int64_t photo_width = width * dilation + numbers.Count(0, dilation - 1);
  const int64_t other_height = numbers.Count(2, 50), other_width = numbers.Count(2, 90);
  const auto depth = numbers.Floats(size), normal = numbers.Floats(3 * size);
  const auto mask = numbers.Floats(size);
  const auto gray = numbers.Floats(photo_height * photo_width);
  const auto other_gray = numbers.Floats(other_height * other_width);
  MultiViewCall call{};
  call.depth_height = numbers.Count(2, 30), call.depth_width = numbers.Count(2, 30);
  const auto other_depth = numbers.Floats(call.depth_height * call.depth_width);
  call.width = width, call.stride = stride;
  call.offset_y = numbers.Count(0, stride - 1), call.offset_x = numbers.Count(0, stride - 1);
  call.depth = depth.data(), call.normal = normal.data(), call.neighbor_depth = other_depth.data();
  call.mask = numbers.Chance(0.5) ? mask.data() : nullptr;
  call.max_reprojection = numbers.Pick({1.0f, 1e30f, numbers.Float()});
  call.max_dissimilarity = numbers.Pick({0.9f, 1e30f, numbers.Float()});
  PatchCall& patch = call.patch;
  patch.gray = gray.data(), patch.neighbor = other_gray.data();
  patch.height = photo_height, patch.width = photo_width;
  patch.neighbor_height = other_height, patch.neighbor_width = other_width;
  patch.rows = height / stride, patch.columns = width / stride, patch.stride = stride * dilation;
  patch.origin_y = numbers.Count(0, dilation - 1), patch.origin_x = numbers.Count(0, dilation - 1);
  patch.offset_y = patch.origin_y + dilation * call.offset_y;
  patch.offset_x = patch.origin_x + dilation * call.offset_x;
  patch.radius = int(numbers.Count(1, kMaxPatchRadius));
  patch.noise_variance = numbers.Pick({6e-5f, 0.0f, numbers.Float()});
  patch.depth = depth.data(), patch.depth_height = height, patch.depth_width = width;
  patch.dilation = dilation, patch.plane_sigma = numbers.Pick({0.0f, 1.0f, numbers.Float()});
  RelateViews(numbers, call);
  std::vector<float> grad_depth(size), grad_normal(3 * size);
  for (int64_t row = 0; row < patch.rows; ++row) {
    const int64_t columns = patch.columns;
    std::vector<float> planes(3 * columns), score(columns), grad_planes(3 * columns),
        by_depth(columns);
    const auto is_inside = numbers.Flags(columns), geometric = numbers.Flags(columns),
               photometric = numbers.Flags(columns);
    MultiViewRowResult result{planes.data(),
                              score.data(),
                              grad_planes.data(),
                              is_inside.get(),
                              geometric.get(),
                              photometric.get(),
                              by_depth.data(),
                              0,
                              0,
                              0,
                              0};
    kernels::MultiViewRow(call, row, &result);
    kernels::SpreadRow(call, row, result, numbers.Float(), numbers.Float(), grad_depth.data(),
                       grad_normal.data());
    planes = numbers.Floats(3 * columns);  // and those that no depth has made
    kernels::PatchRow(patch, row, planes.data(), score.data(), is_inside.get(), grad_planes.data());
  }
}

View AnyView(Numbers& numbers) {
  float pose[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1};
  float intrinsics[9] = {40, 0, 20, 0, 40, 16, 0, 0, 1};
  if (numbers.Chance(0.3)) numbers.Fill(pose, 16);
  if (numbers.Chance(0.3)) numbers.Fill(intrinsics, 9);
  return MakeView(pose, intrinsics, numbers.Count(1, 50), numbers.Count(1, 40), 0.05f,
                  numbers.Pick({2.0f, 0.5f, 0.0f}), numbers.Chance(0.2));
}

// What the removal score sums up, tile by tile, for surfels in the order of their numbers.
void Removal(Numbers& numbers) {
  const int64_t count = numbers.Count(0, 300);
  const int degree = int(numbers.Count(0, 3));
  const int64_t num_sh = (degree + 1) * (degree + 1) + numbers.Count(0, 2);
  const auto means = numbers.Floats(3 * count), quats = numbers.Floats(4 * count);
  const auto scales = numbers.Floats(2 * count), logits = numbers.Floats(count);
  const auto sh = numbers.Floats(3 * num_sh * count), background = numbers.Floats(3);
  const auto alive = numbers.Flags(count);
  Surfels surfels{{means.data(), quats.data(), scales.data(), logits.data(), sh.data()},
                  alive.get(),
                  count,
                  num_sh,
                  degree};
  const View view = AnyView(numbers);
  std::vector<Record> records(count);
  std::vector<float> depths(count);
  std::vector<CullStatus> statuses(count);
  kernels::ProjectSurfels(surfels, view, 0, count, records.data(), depths.data(), statuses.data());
  const int tiles_y = (view.height + kTile - 1) / kTile, tiles_x = (view.width + kTile - 1) / kTile;
  std::vector<int64_t> offsets(count);
  int64_t pairs = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (statuses[i] != CullStatus::kDrawn) continue;
    offsets[i] = pairs;
    pairs += PairsInRows(records[i].box, 0, tiles_y);
  }
  std::vector<float> rows(kRemoval * pairs);
  for (int tile = 0; tile < tiles_x * tiles_y; ++tile) {
    const int x = tile % tiles_x, y = tile / tiles_x;
    std::vector<int32_t> list;
    for (int64_t i = 0; i < count; ++i) {
      const Box& box = records[i].box;
      if (statuses[i] == CullStatus::kDrawn && box.tile_x0() <= x && x <= box.tile_x1() &&
          box.tile_y0() <= y && y <= box.tile_y1())
        list.push_back(int32_t(i));
    }
    list.shrink_to_fit();
    const int64_t size = int64_t(list.size());
    std::vector<float> hits(HitMemory::num_numbers(size));
    std::vector<uint16_t> where(HitMemory::num_hits(size));
    std::vector<int32_t> ends(size);
    kernels::BlendTileRemoval({x * kTile, y * kTile, list.data(), int32_t(size)}, records.data(),
                              view, background.data(), {hits.data(), where.data(), ends.data()},
                              {rows.data(), offsets.data(), 0});
  }
}

}  // namespace
}  // namespace cosurfgs

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 100;
  const int first = argc > 2 ? std::atoi(argv[2]) : 0;
  for (int seed = first; seed < first + rounds; ++seed) {
    for (auto* kernel : {cosurfgs::Adam, cosurfgs::Photometric, cosurfgs::PlaneDepth,
                         cosurfgs::SingleView, cosurfgs::MultiView, cosurfgs::Removal}) {
      cosurfgs::Numbers numbers(seed);
      kernel(numbers);
    }
  }
  std::printf("%d rounds\n", rounds);
}
