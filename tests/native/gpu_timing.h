// `gpu_program time`: milliseconds of both calls on a GPU, whole and by kernel. Included by
// gpu_program.cc.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace cosurfgs {
namespace cuda {
namespace {

// Scratch memory as XLA gives it: from a pool, so that the second call of the same kind waits for
// no allocation.
class Pool {
 public:
  explicit Pool(DeviceMemory& memory) : memory_(memory) {}
  void Reset() { next_ = 0; }
  void* Allocate(size_t bytes) {
    if (next_ == pieces_.size()) pieces_.push_back({nullptr, 0});
    Piece& piece = pieces_[next_++];
    if (piece.bytes < bytes) piece = {memory_.Scratch(bytes), bytes};
    return piece.data;
  }

 private:
  struct Piece {
    void* data;
    size_t bytes;
  };
  DeviceMemory& memory_;
  std::vector<Piece> pieces_;
  size_t next_ = 0;
};

class Stopwatch {
 public:
  Stopwatch() {
    Must(cudaEventCreate(&begin_), "make an event");
    Must(cudaEventCreate(&end_), "make an event");
    Must(cudaEventRecord(begin_, stream), "record an event");
  }
  void Stop() { Must(cudaEventRecord(end_, stream), "record an event"); }
  // Waits for what was timed.
  double Milliseconds() {
    float milliseconds = 0;
    Must(cudaEventSynchronize(end_), "work on the device");
    Must(cudaEventElapsedTime(&milliseconds, begin_, end_), "read a time");
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
    return milliseconds;
  }

 private:
  cudaEvent_t begin_, end_;
};

// "BlendTileBlock<2, true>" of a body, as the C++ compiler writes it.
template <class Body>
std::string NameOf() {
  const std::string text = __PRETTY_FUNCTION__, key = "Body = ";
  const size_t begin = text.find(key) + key.size(), end = text.find_first_of(";]", begin);
  std::string name = text.substr(begin, end - begin);
  // Without the namespaces, of its arguments too.
  for (size_t colons; (colons = name.find("::")) != std::string::npos;) {
    const size_t before = name.find_last_of("<, ", colons);
    const size_t first = before == std::string::npos ? 0 : before + 1;
    name.erase(first, colons + 2 - first);
  }
  return name;
}

// CudaDevice with a stopwatch around each piece of work.
class TimedDevice : public CudaDevice {
 public:
  using CudaDevice::CudaDevice;
  template <class Body>
  void For(int64_t n, const typename Body::Args& args) {
    Timed(NameOf<Body>(), [&] { CudaDevice::For<Body>(n, args); });
  }
  template <class Body>
  void Blocks(int64_t n, const typename Body::Args& args) {
    Timed(NameOf<Body>(), [&] { CudaDevice::Blocks<Body>(n, args); });
  }
  void Zero(void* data, size_t bytes) {
    Timed("zeros", [&] { CudaDevice::Zero(data, bytes); });
  }
  template <class... Args>
  void SortPairs(Args... args) {
    Timed("sort", [&] { CudaDevice::SortPairs(args...); });
  }
  template <class... Args>
  void ExclusiveSum(Args... args) {
    Timed("prefix sum", [&] { CudaDevice::ExclusiveSum(args...); });
  }
  int64_t Read(const int64_t* value) {
    int64_t result = 0;
    Timed("read-back", [&] { result = CudaDevice::Read(value); });
    return result;
  }
  std::vector<int64_t> ReadEvery(const int64_t* values, int64_t stride, int64_t count) {
    std::vector<int64_t> result;
    Timed("read-back", [&] { result = CudaDevice::ReadEvery(values, stride, count); });
    return result;
  }
  // Sums by name.
  std::map<std::string, double> Milliseconds() {
    std::map<std::string, double> sums;
    for (auto& [name, watch] : watches_) sums[name] += watch.Milliseconds();
    return sums;
  }

 private:
  template <class Work>
  void Timed(const std::string& name, Work work) {
    watches_.emplace_back(name, Stopwatch());
    work();
    watches_.back().second.Stop();
  }
  std::vector<std::pair<std::string, Stopwatch>> watches_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Medians over runs of run(device): of the whole, and by kernel in runs of their own, as the
// stopwatches take time, too.
template <class Run>
void PrintTimes(const char* call, Pool& pool, int num_runs, Run run) {
  const auto allocate = [&](size_t bytes) { return pool.Allocate(bytes); };
  std::vector<double> whole;
  std::map<std::string, std::vector<double>> parts;
  for (int i = -2; i < num_runs; ++i) {  // two to warm up
    pool.Reset();
    CudaDevice device(stream, allocate);
    Stopwatch watch;
    run(device);
    watch.Stop();
    const double milliseconds = watch.Milliseconds();
    Must(device.error(), call);
    if (i >= 0) whole.push_back(milliseconds);
  }
  for (int i = 0; i < num_runs; ++i) {
    pool.Reset();
    TimedDevice device(stream, allocate);
    run(device);
    for (const auto& [name, milliseconds] : device.Milliseconds())
      parts[name].push_back(milliseconds);
    Must(device.error(), call);
  }
  std::printf("  %-40s %9.3f\n", call, Median(whole));
  for (const auto& [name, values] : parts)
    std::printf("    %-38s %9.3f\n", name.c_str(), Median(values));
}

void TimeScene(const SceneShape& shape, int num_runs) {
  const Scene scene = program::MakeScene(shape);
  DeviceMemory memory(false);
  Pool pool(memory);
  Request request;
  const ForwardCalls forward = MakeForward(memory, scene, request);
  const auto draw = [&](auto& device) {
    Pipeline<std::decay_t<decltype(device)>>(device, forward.call, request.band_pairs)
        .Forward(forward.results);
  };
  std::printf("%lld surfels, %dx%d, all maps: median of %d runs, ms\n",
              static_cast<long long>(shape.num_surfels), shape.width, shape.height, num_runs);
  PrintTimes("forward", pool, num_runs, draw);
  BackwardCalls backward = MakeBackward(memory, scene, request, forward.results.image);
  const auto go_back = [&](auto& device) {
    Pipeline<std::decay_t<decltype(device)>>(device, backward.call, request.band_pairs)
        .Backward(backward.backward);
  };
  PrintTimes("backward, deterministic", pool, num_runs, go_back);
  backward.backward.is_deterministic = false;
  PrintTimes("backward, atomic additions", pool, num_runs, go_back);
  const std::vector<int32_t> status = memory.Take(forward.results.status, 2);
  std::printf("  pairs of surfel and tile: %d\n", status[1]);
  std::fflush(stdout);
}

// Standard deviations of surfels in pixels shrink with their number, so that the picture stays as
// full.
SceneShape TimingShape(int64_t num_surfels, int width, int height) {
  const float pixels = 0.8f * std::sqrt(float(width) * height / num_surfels);
  return {num_surfels, width, height, 1, 0.4f * pixels, 3.0f * pixels, false};
}

}  // namespace
}  // namespace cuda
}  // namespace cosurfgs

// arguments: SURFELS WIDTH HEIGHT [RUNS], or none.
int Time(int count, char** arguments) {
  using namespace cosurfgs::cuda;
  int64_t numbers[4] = {0, 0, 0, 20};
  bool is_valid = count == 0 || count == 3 || count == 4;
  for (int i = 0; i < count && i < 4; ++i) {
    numbers[i] = std::atoll(arguments[i]);
    is_valid = is_valid && numbers[i] > 0;
  }
  if (!is_valid) {
    std::printf("time: expected SURFELS WIDTH HEIGHT [RUNS], all above 0\n");
    return 2;
  }
  if (count) {
    TimeScene(TimingShape(numbers[0], int(numbers[1]), int(numbers[2])), int(numbers[3]));
    return 0;
  }
  for (int64_t surfels : {100000, 1000000, 5000000})
    TimeScene(TimingShape(surfels, 1920, 1080), 20);
  for (int64_t surfels : {100000, 1000000}) TimeScene(TimingShape(surfels, 3840, 2160), 20);
  return 0;
}
