// The CUDA pipeline on the host: the same bodies and the same order of work, with loops for threads, blocks and warps, and the
// standard library for cub. What it cannot show is what nvcc and a GPU make of it: races within a phase, occupancy, speed.
//
// Scratch memory is filled with 0xa5, so that a read of what nobody wrote is seen (as floats -2.9e-16, as indices a crash).
// Threads of a phase, and blocks, run in the order that emulation_set says: results must not depend on it.

#define COSURFGS_VARIANT emulated

#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "emulated_block.h"
#include "gpu_handlers.h"

namespace cosurfgs {
namespace emulated {
namespace {

int64_t band_pairs = int64_t(1) << 24;

class HostDevice {
 public:
  void* Allocate(size_t bytes) {
    memory_.emplace_back(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free);
    std::memset(memory_.back().get(), 0xa5, bytes);
    return memory_.back().get();
  }
  void Zero(void* data, size_t bytes) {
    if (bytes) std::memset(data, 0, bytes);
  }
  template <class Body>
  void For(int64_t n, const typename Body::Args& args) {
    InOrder(n, [&](int64_t i) { Body::Run(args, i); });
  }
  template <class Body>
  void Blocks(int64_t n, const typename Body::Args& args) {
    InOrder(n, [&](int64_t i) {
      HostBlock<Body> block;
      Body::Run(block, args, i);
    });
  }
  void SortPairs(const uint32_t* keys, uint32_t* sorted_keys, const int32_t* values, int32_t* sorted_values, int64_t n,
                 int bits) {
    const auto digits = [&](int64_t i) { return bits < 32 ? keys[i] & ((1u << bits) - 1) : keys[i]; };
    std::vector<int64_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
    for (int64_t i = 0; i < n; ++i) {
      sorted_keys[i] = keys[order[i]];
      sorted_values[i] = values[order[i]];
    }
  }
  void ExclusiveSum(const int64_t* in, int64_t* out, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      out[i] = sum;
      sum += in[i];
    }
  }
  int64_t Read(const int64_t* value) { return *value; }
  std::vector<int64_t> ReadEvery(const int64_t* values, int64_t stride, int64_t count) {
    std::vector<int64_t> result(count);
    for (int64_t i = 0; i < count; ++i) result[i] = values[i * stride];
    return result;
  }
  int64_t max_band_pairs() const { return band_pairs; }
  ffi::Error Finish() { return ffi::Error::Success(); }

 private:
  std::vector<std::unique_ptr<char, void (*)(void*)>> memory_;
};

constexpr auto kForward = [](auto... operands) {
  HostDevice device;
  return Forward(device, operands...);
};
constexpr auto kBackward = [](auto... operands) {
  HostDevice device;
  return Backward(device, operands...);
};

}  // namespace
}  // namespace emulated
}  // namespace cosurfgs

extern "C" void emulation_set(bool is_reversed, int64_t band_pairs) {
  cosurfgs::emulated::is_reversed = is_reversed;
  cosurfgs::emulated::band_pairs = band_pairs;
}

// Batches, ballots, visits, hits and whole hits since the last call.
extern "C" void emulation_work(int64_t* numbers) {
  using cosurfgs::emulated::work;
  numbers[0] = work.batches;
  numbers[1] = work.ballots;
  numbers[2] = work.visits;
  numbers[3] = work.hits;
  numbers[4] = work.whole_hits;
  work = {};
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(EmulatedRasterForward, cosurfgs::emulated::kForward,
                              cosurfgs::BindForward(xla::ffi::Ffi::Bind()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(EmulatedRasterBackward, cosurfgs::emulated::kBackward,
                              cosurfgs::BindBackward(xla::ffi::Ffi::Bind()));
