// A program that checks the CUDA kernels on a GPU without Python and XLA:
// scripts/build_gpu_program.sh builds it.
//
//   check      all checks, on memory with guard bytes
//   quick      those on small scenes
//   sanitize   for compute-sanitizer: bare memory, several tiles of cub's sorts and more than one
//   wave of blocks, no reference time       milliseconds per kernel (gpu_timing.h); of the
//   emulation they say nothing about a GPU
//
// A line per check: ok or FAILED, its name, what was measured. With COSURFGS_EMULATED the same over
// emulated_device.h, which shows that the checks hold where the code is right, and can fail where
// it is not.

#define COSURFGS_VARIANT cuda

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "gpu/cuda_device.h"
#ifdef COSURFGS_EMULATED
#include "emulated_device.h"
#endif
#include "gpu_memory.h"
#include "gpu_reference.h"
#include "gpu_runner.h"
#include "gpu_training_runner.h"

namespace cosurfgs {
namespace cuda {
namespace {

using program::Gradients;
using program::Maps;
using program::Request;
using program::Scene;
using program::SceneShape;
using program::TrainingResults;
using program::TrainingShape;

// Ends the program: without a device that works nothing else can be said.
void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FAILED %s: CUDA: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

cudaStream_t stream = nullptr;

// Copies wait for all work on the device, whatever its stream.
struct CudaApi {
  static void* Allocate(size_t bytes) {
    void* data = nullptr;
    return cudaMalloc(&data, bytes) == cudaSuccess ? data : nullptr;
  }
  static void Free(void* data) { cudaFree(data); }
  static void Fill(void* data, int byte, size_t bytes) {
    Must(cudaMemset(data, byte, bytes), "fill memory");
    Must(cudaDeviceSynchronize(), "fill memory");
  }
  static void ToDevice(void* data, const void* host, size_t bytes) {
    if (bytes) Must(cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice), "copy to the device");
    Must(cudaDeviceSynchronize(), "copy to the device");
  }
  static void ToHost(void* host, const void* data, size_t bytes) {
    Must(cudaDeviceSynchronize(), "work on the device");
    if (bytes) Must(cudaMemcpy(host, data, bytes, cudaMemcpyDeviceToHost), "copy from the device");
  }
};
using DeviceMemory = program::Memory<CudaApi>;

bool is_guarded = true;  // the memory of all calls
int num_checks = 0, num_failed = 0;

void Report(bool is_ok, const std::string& name, const std::string& detail) {
  ++num_checks;
  num_failed += !is_ok;
  std::printf("%-6s %s: %s\n", is_ok ? "ok" : "FAILED", name.c_str(), detail.c_str());
  std::fflush(stdout);
}

template <class... Values>
std::string Text(const char* format, Values... values) {
  char text[200];
  std::snprintf(text, sizeof(text), format, values...);
  return text;
}

void Finish(const CudaDevice& device, const DeviceMemory& memory, const char* call) {
  Must(device.error(), call);
  if (device.refused_bytes()) {
    std::printf("FAILED %s: no %zu bytes of memory left\n", call, device.refused_bytes());
    std::exit(1);
  }
  if (!memory.AreGuardsWhole()) Report(false, call, "a write behind memory");
}

Maps Draw(const Scene& scene, const Request& request) {
  DeviceMemory memory(is_guarded);
  CudaDevice device(stream, [&](size_t bytes) { return memory.Scratch(bytes); });
  const Maps maps = RunForward(device, memory, scene, request);
  Finish(device, memory, "forward");
  return maps;
}

Gradients GoBack(const Scene& scene, const Request& request, const Maps& maps) {
  DeviceMemory memory(is_guarded);
  CudaDevice device(stream, [&](size_t bytes) { return memory.Scratch(bytes); });
  const Gradients gradients = RunBackward(device, memory, scene, request, maps);
  Finish(device, memory, "backward");
  return gradients;
}

TrainingResults Train(const TrainingShape& shape) {
  DeviceMemory memory(is_guarded);
  CudaDevice device(stream, [&](size_t bytes) { return memory.Scratch(bytes); });
  TrainingResults results = RunTraining(device, memory, shape);
  Finish(device, memory, "losses and Adam");
  return results;
}

// Two results, row by row: how far apart, as a share of the row's largest number plus the root mean
// square of all.
struct Difference {
  double rows = 0, over = 0, worst = 0;  // of how many rows more than 0.2 % apart, and the largest
};
Difference Compare(const std::vector<float>& got, const std::vector<float>& want, int row_size) {
  double sum = 0;
  for (float value : want) sum += double(value) * value;
  if (got.size() != want.size() || !std::isfinite(sum)) return {1, INFINITY, INFINITY};
  const double scale = want.empty() ? 0 : std::sqrt(sum / want.size()) + 1e-12;
  const int64_t rows = want.size() / row_size;
  Difference result;
  result.rows = double(rows);
  for (int64_t i = 0; i < rows; ++i) {
    double largest = 0, apart = 0;
    for (int64_t k = i * row_size; k < (i + 1) * row_size; ++k) {
      const double difference = std::fabs(double(got[k]) - want[k]);
      apart = std::isfinite(difference) ? std::max(apart, difference) : INFINITY;
      largest = std::max(largest, std::fabs(double(want[k])));
    }
    apart /= largest + scale;
    if (apart > 2e-3) result.over += 1;
    result.worst = std::max(result.worst, apart);
  }
  return result;
}

struct Named {
  const char* name;
  const std::vector<float>& values;
  int row_size;
};
std::vector<Named> Rows(const Maps& m) {
  return {{"color", m.color, 3},           {"transmittance", m.transmittance, 1},
          {"depth_sum", m.depth_sum, 1},   {"median_depth", m.median_depth, 1},
          {"normal_sum", m.normal_sum, 3}, {"plane_sum", m.plane_sum, 1},
          {"distortion", m.distortion, 1}, {"contributions", m.contributions, kContributions}};
}
std::vector<Named> Rows(const Gradients& g) {
  const int sh = g.logit_opacities.empty() ? 1 : g.sh.size() / g.logit_opacities.size();
  return {{"means", g.means, 3},
          {"quats", g.quats, 4},
          {"log_scales", g.log_scales, 2},
          {"logit_opacities", g.logit_opacities, 1},
          {"sh", g.sh, sh},
          {"camera", g.camera, 16},
          {"probe", g.probe, 4}};
}
std::vector<Named> Rows(const TrainingResults& r) {
  return {{"losses", r.losses, 1},
          {"grad_render", r.grad_render, 3},
          {"grad_alpha", r.grad_alpha, 1},
          {"grad_transform", r.grad_transform, 4},
          {"values", r.values, 1},
          {"mu", r.mu, 1},
          {"nu", r.nu, 1}};
}

// With the device's code compiled with fused multiply-adds and the reference's without, 1 of 60,000
// rows was over, by 0.6 %: a hit at the edge of a surfel (alpha 1/255) or of a pixel's last
// transmittance may be taken by one and not by the other. GPUs have other functions, too, hence
// more room; in small pictures it is a row or two, though never of the few of cameras. Another
// order of additions turns no hit.
struct Limit {
  double share, rows, worst;
  double Rows(double all) const { return std::max(share * all, std::min(rows, 0.05 * all)); }
};
constexpr Limit kOtherProcessor{2e-3, 3, INFINITY}, kOtherOrder{0, 0, 2e-2};

struct Verdict {
  bool is_close;
  std::string text;
};
template <class Results>
Verdict Judge(const Results& got, const Results& want, Limit limit) {
  const auto got_rows = Rows(got), want_rows = Rows(want);
  std::string over;
  double worst = 0;
  const char* worst_in = "all";
  bool is_ok = true;
  for (size_t i = 0; i < got_rows.size(); ++i) {
    const Difference difference =
        Compare(got_rows[i].values, want_rows[i].values, got_rows[i].row_size);
    is_ok =
        is_ok && difference.over <= limit.Rows(difference.rows) && difference.worst <= limit.worst;
    if (difference.over > 0)
      over += Text(" %s %.0f of %.0f,", got_rows[i].name, difference.over, difference.rows);
    if (difference.worst <= worst) continue;
    worst = difference.worst;
    worst_in = got_rows[i].name;
  }
  return {is_ok, Text("differences up to %.2g (%s)", worst, worst_in) +
                     (over.empty() ? "" : "; rows over 0.2 %:" + over.substr(0, over.size() - 1))};
}

template <class Results>
void CheckClose(const std::string& name, const Results& got, const Results& want, Limit limit) {
  const Verdict verdict = Judge(got, want, limit);
  Report(verdict.is_close, name, verdict.text);
}

bool IsSame(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
template <class Results>
void CheckSame(const std::string& name, const Results& got, const Results& want) {
  const auto got_rows = Rows(got), want_rows = Rows(want);
  std::string different;
  for (size_t i = 0; i < got_rows.size(); ++i) {
    if (!IsSame(got_rows[i].values, want_rows[i].values))
      different += std::string(" ") + got_rows[i].name;
  }
  Report(different.empty(), name,
         different.empty() ? "the same bits" : "not the same bits:" + different);
}

// What must hold of any drawing: transmittances, counts, and that the weights of all surfels make
// up what pixels do not let pass.
void CheckMaps(const std::string& name, const Scene& scene, const Maps& maps) {
  float low = 1, high = 0;
  double opaque = 0, weights = 0;
  bool is_finite = true;
  for (float value : maps.transmittance) {
    low = std::min(low, value);
    high = std::max(high, value);
    opaque += 1.0 - value;
  }
  for (const auto& rows : Rows(maps)) {
    for (float value : rows.values) is_finite = is_finite && std::isfinite(value);
  }
  Report(is_finite && low >= 0 && high <= 1, name + ", range",
         Text("%s, transmittance from %.3g to %.3g", is_finite ? "all finite" : "NOT FINITE", low,
              high));
  bool is_counted = true;
  for (int64_t v = 0; v < scene.num_views; ++v)
    is_counted = is_counted && maps.status[2 * v] == scene.num_invalid;
  Report(is_counted, name + ", broken surfels",
         Text("counted %d of %d", maps.status[0], scene.num_invalid));
  if (maps.contributions.empty()) return;
  for (size_t i = 0; i < maps.contributions.size(); i += kContributions)
    weights += maps.contributions[i];
  Report(std::fabs(weights - opaque) <= 1e-3 * opaque, name + ", weights",
         Text("sum of contributions %.6g, sum of 1 - transmittance %.6g", weights, opaque));
}

#ifdef COSURFGS_EMULATED
// The reference is the emulation with threads, warps and blocks in reverse.
template <class Function>
auto Reversed(Function fn) {
  is_reversed = true;
  auto result = fn();
  is_reversed = false;
  return result;
}
Maps Reference(const Scene& scene, const Request& request) {
  return Reversed([&] { return Draw(scene, request); });
}
Gradients Reference(const Scene& scene, const Request& request, const Maps& maps) {
  return Reversed([&] { return GoBack(scene, request, maps); });
}
TrainingResults Reference(const TrainingShape& shape) {
  return Reversed([&] { return Train(shape); });
}
#else
Maps Reference(const Scene& scene, const Request& request) {
  return program::ReferenceForward(scene, request);
}
Gradients Reference(const Scene& scene, const Request& request, const Maps& maps) {
  return program::ReferenceBackward(scene, request, maps);
}
TrainingResults Reference(const TrainingShape& shape) { return program::ReferenceTraining(shape); }
#endif

const char* const kMapNames[] = {"colour", "geometry", "everything"};

// One level of maps: forward and back against the reference, and against itself in all ways of
// going back.
void CheckLevel(const std::string& scene_name, const Scene& scene, int level, bool has_reference) {
  const std::string name = scene_name + ", " + kMapNames[level];
  Request request;
  request.maps = level;
  const Maps plain = Draw(scene, request);
  request.with_contributions = true;
  Maps maps = Draw(scene, request);
  CheckMaps(name, scene, maps);
  if (has_reference)
    CheckClose(name + ", forward against the host", maps, Reference(scene, request),
               kOtherProcessor);
  CheckSame(name + ", forward twice", Draw(scene, request), maps);
  maps.contributions.clear();
  CheckClose(name + ", with and without contributions", plain, maps, kOtherProcessor);

  const Gradients gradients = GoBack(scene, request, maps);
  if (has_reference) {
    CheckClose(name + ", backward against the host", gradients, Reference(scene, request, maps),
               kOtherProcessor);
  }
  CheckSame(name + ", backward twice", GoBack(scene, request, maps), gradients);
  request.kept_bytes = 192 * scene.num_surfels + 4 * scene.pixels();  // as the package gives
  CheckSame(name + ", backward from what forward left",
            GoBack(scene, request, Draw(scene, request)), gradients);
  request.with_probe = false;
  Gradients without_probe = gradients;
  without_probe.probe.clear();
  // Another kernel, in which the compiler may round elsewhere.
  CheckClose(name + ", backward without a probe", GoBack(scene, request, maps), without_probe,
             kOtherOrder);
  request.with_probe = true;
  request.band_pairs = std::max<int64_t>(1, maps.status[1] / 5);
  CheckClose(name + ", backward in bands", GoBack(scene, request, maps), gradients, kOtherOrder);
  request.is_deterministic = false;
  CheckClose(name + ", backward by atomic additions", GoBack(scene, request, maps), gradients,
             kOtherOrder);
}

void CheckScene(const std::string& name, const SceneShape& shape, bool has_reference = true) {
  const Scene scene = program::MakeScene(shape);
  for (int level : {kColor, kGeometry, kAll}) CheckLevel(name, scene, level, has_reference);
}

Scene OneView(Scene scene, int64_t view) {
  scene.num_views = 1;
  scene.cameras = {scene.cameras.begin() + 16 * view, scene.cameras.begin() + 16 * (view + 1)};
  scene.intrinsics = {scene.intrinsics.begin() + 9 * view,
                      scene.intrinsics.begin() + 9 * (view + 1)};
  return scene;
}

void Append(std::vector<float>& to, const std::vector<float>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

// Several views in one call are the views by themselves, one behind the other.
void CheckViews(const SceneShape& shape) {
  const Scene scene = program::MakeScene(shape);
  Request request;
  request.with_contributions = true;
  const Maps all = Draw(scene, request);
  CheckMaps("several views", scene, all);
  Maps joined;
  for (int64_t v = 0; v < scene.num_views; ++v) {
    const Maps one = Draw(OneView(scene, v), request);
    Append(joined.color, one.color);
    Append(joined.transmittance, one.transmittance);
    Append(joined.depth_sum, one.depth_sum);
    Append(joined.median_depth, one.median_depth);
    Append(joined.normal_sum, one.normal_sum);
    Append(joined.plane_sum, one.plane_sum);
    Append(joined.distortion, one.distortion);
    Append(joined.contributions, one.contributions);
  }
  CheckSame("several views, each by itself", all, joined);
  CheckClose("several views, backward against the host", GoBack(scene, request, all),
             Reference(scene, request, all), kOtherProcessor);
}

void CheckEmpty() {
  Scene scene = program::MakeScene({0, 45, 37});
  for (bool is_dead : {false, true}) {
    if (is_dead) {
      scene = program::MakeScene({500, 45, 37});
      scene.alive.assign(500, 0);
      scene.num_invalid = 0;
    }
    const std::string name = is_dead ? "only dead surfels" : "no surfels";
    Request request;
    request.with_contributions = true;
    const Maps maps = Draw(scene, request);
    CheckMaps(name, scene, maps);
    bool is_background = true;
    for (size_t i = 0; i < maps.color.size(); ++i)
      is_background = is_background && maps.color[i] == scene.background[i % 3];
    Report(is_background, name + ", colour", "the background everywhere");
    double sum = 0;
    for (bool is_deterministic : {true, false}) {
      request.is_deterministic = is_deterministic;
      const Gradients gradients = GoBack(scene, request, maps);
      for (const auto& rows : Rows(gradients)) {
        for (float value : rows.values) sum += std::fabs(value);
      }
    }
    Report(sum == 0, name + ", gradients", Text("sum of magnitudes %.3g", sum));
  }
}

// The photometric losses and Adam.
void CheckTraining(const std::string& name, const TrainingShape& shape, bool has_reference = true) {
  const TrainingResults results = Train(shape);
  if (has_reference)
    CheckClose(name + ", losses and Adam against the host", results, Reference(shape),
               kOtherProcessor);
  CheckSame(name + ", losses and Adam twice", Train(shape), results);
}

// One pixel; whole tiles; a border inside a tile; weights, a mask, and both. Fields of 1, 3 and 48
// numbers a surfel.
void CheckSmallTraining(bool has_reference = true) {
  CheckTraining("a pixel", {1, 1, 3, false, 1, 1}, has_reference);
  CheckTraining("whole tiles", {24, 128, 3, false, 333, 3}, has_reference);
  CheckTraining("weights", {37, 150, 4, false, 130, 48}, has_reference);
  CheckTraining("a mask", {37, 150, 3, true, 50, 3}, has_reference);
  CheckTraining("weights and a mask", {9, 65, 4, true, 7, 2}, has_reference);
}

// That comparisons can fail.
void CheckComparisons() {
  const Scene scene = program::MakeScene({200, 40, 40});
  const Request request;
  const Maps maps = Draw(scene, request);
  const Gradients gradients = GoBack(scene, request, maps);
  Gradients wrong = gradients;
  for (size_t i = 0; i < wrong.means.size(); i += 10) wrong.means[i] *= 1.1f;
  Report(!Judge(wrong, gradients, kOtherProcessor).is_close, "comparisons",
         "see means 10 % too large");
  wrong = gradients;
  wrong.camera[0] = NAN;
  Report(!Judge(wrong, gradients, kOtherProcessor).is_close, "comparisons", "see a NaN");
}

void Quick() {
  CheckComparisons();
  CheckEmpty();
  CheckScene("one tile", {60, 16, 16});
  CheckScene("small", {1500, 150, 110});
  CheckViews({400, 70, 50, 3});
  CheckSmallTraining();
}

void Check() {
  Quick();
  // Several tiles of cub's sorts and scans, and more blocks than a GPU holds at a time.
  CheckScene("medium", {60000, 1280, 720, 1, 0.4f, 6.0f});
  CheckTraining("medium", {720, 1280, 4, false, 60000, 48});
}

// Kernels take long under the tools: nothing is drawn that another drawing does not need.
void Sanitize() {
  is_guarded = false;
  CheckEmpty();
  CheckScene("one tile", {60, 16, 16}, false);
  CheckScene("medium", {30000, 560, 400, 1, 0.4f, 4.0f}, false);
  CheckSmallTraining(false);
}

}  // namespace
}  // namespace cuda
}  // namespace cosurfgs

#include "gpu_timing.h"

int main(int argc, char** argv) {
  namespace device = cosurfgs::cuda;
  const std::string command = argc > 1 ? argv[1] : "";
  const auto takes_arguments = command == "time";
  void (*checks)() = command == "check"      ? device::Check
                     : command == "quick"    ? device::Quick
                     : command == "sanitize" ? device::Sanitize
                                             : nullptr;
  if ((!checks && !takes_arguments) || (checks && argc > 2)) {
    std::printf("usage: %s check | quick | sanitize | time [SURFELS WIDTH HEIGHT [RUNS]]\n",
                argv[0]);
    return 2;
  }
#ifdef COSURFGS_EMULATED
  std::printf("device: emulated on the host\n");
#else
  cudaDeviceProp properties;
  device::Must(cudaGetDeviceProperties(&properties, 0), "find a GPU");
  std::printf("device: %s, compute capability %d.%d\n", properties.name, properties.major,
              properties.minor);
  device::Must(device::CudaDevice::TryKernel(), "find a kernel for this GPU");
  // Not the stream that everything waits for: work that went there by mistake would be too early or
  // too late.
  device::Must(cudaStreamCreateWithFlags(&device::stream, cudaStreamNonBlocking), "make a stream");
#endif
  if (takes_arguments) return Time(argc - 2, argv + 2);
  checks();
  std::printf("%d checks, %d failed\n", device::num_checks, device::num_failed);
  return device::num_failed != 0;
}
