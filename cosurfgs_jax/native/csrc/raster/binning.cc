#include "raster/binning.h"

#include <atomic>
#include <chrono>
#include <cstring>

namespace cosurfgs {
namespace {

std::atomic<int64_t> stage_nanoseconds[kNumStages];

constexpr int64_t kProjectChunk = 1024;

// Stable least-significant-digit radix sort of `ids` by `keys`; 11 bits a pass. Passes whose digit
// is the same in all keys are skipped (the exponents of one scene's depths differ little).
void RadixSort(uint32_t*& keys, int32_t*& ids, uint32_t* other_keys, int32_t* other_ids,
               int64_t n) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  static thread_local int64_t counts[3][kBuckets];
  std::memset(counts, 0, sizeof(counts));
  for (int64_t i = 0; i < n; ++i) {
    for (int pass = 0; pass < 3; ++pass) ++counts[pass][keys[i] >> (pass * kBits) & (kBuckets - 1)];
  }
  for (int pass = 0; pass < 3; ++pass) {
    if (n == 0 || counts[pass][keys[0] >> (pass * kBits) & (kBuckets - 1)] == n) continue;
    int64_t position = 0;
    for (int64_t& count : counts[pass]) {
      const int64_t here = count;
      count = position;
      position += here;
    }
    for (int64_t i = 0; i < n; ++i) {
      const int64_t target = counts[pass][keys[i] >> (pass * kBits) & (kBuckets - 1)]++;
      other_keys[target] = keys[i];
      other_ids[target] = ids[i];
    }
    std::swap(keys, other_keys);
    std::swap(ids, other_ids);
  }
}

}  // namespace

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
void AddStageTime(Stage stage, double seconds) {
  stage_nanoseconds[stage] += int64_t(seconds * 1e9);
}

Binned ProjectAndBin(const Surfels& surfels, const View& view, Parallel& parallel,
                     BinningScratch& scratch) {
  double start = Now();
  const int64_t n = surfels.num_surfels;
  Binned out;
  out.records = scratch.records.Get(n);
  float* depths = scratch.depths.Get(n);
  CullStatus* statuses = scratch.statuses.Get(n);
  parallel.For((n + kProjectChunk - 1) / kProjectChunk, [&](int64_t chunk) {
    const int64_t begin = chunk * kProjectChunk, end = std::min(n, begin + kProjectChunk);
    COSURFGS_DISPATCH(ProjectSurfels, surfels, view, begin, end, out.records, depths, statuses);
  });
  double projected = Now();
  AddStageTime(kStageProject, projected - start);

  // Front to back: positive floats sort like their bits, and the sort is stable, so ties stay in
  // order of id.
  uint32_t* keys = scratch.keys.Get(n);
  out.order = scratch.order.Get(n);
  out.num_drawn = out.num_invalid = 0;
  for (int64_t id = 0; id < n; ++id) {
    if (statuses[id] == CullStatus::kDrawn) {
      std::memcpy(&keys[out.num_drawn], &depths[id], sizeof(float));
      out.order[out.num_drawn++] = int32_t(id);
    } else if (statuses[id] == CullStatus::kInvalid) {
      ++out.num_invalid;
    }
  }
  RadixSort(keys, out.order, scratch.other_keys.Get(n), scratch.other.Get(n), out.num_drawn);

  out.boxes = scratch.boxes.Get(out.num_drawn);
  for (int64_t i = 0; i < out.num_drawn; ++i) out.boxes[i] = out.records[out.order[i]].box;

  // Counting sort by tile: each chunk of the order counts, then writes behind the chunks before it,
  // so lists keep the order whatever the number of chunks.
  out.tiles_x = (view.width + kTile - 1) / kTile;
  out.tiles_y = (view.height + kTile - 1) / kTile;
  const int num_tiles = out.num_tiles();
  const int64_t num_chunks =
      std::max<int64_t>(1, std::min<int64_t>(parallel.max_threads(), out.num_drawn / 4096));
  const int64_t chunk_size = (out.num_drawn + num_chunks - 1) / num_chunks;
  int64_t* histogram = scratch.histogram.Get(num_chunks * num_tiles);
  auto for_tiles = [&](int64_t chunk, auto&& visit) {
    const int64_t end = std::min<int64_t>(out.num_drawn, (chunk + 1) * chunk_size);
    for (int64_t i = chunk * chunk_size; i < end; ++i) {
      const Box& box = out.boxes[i];
      const int x0 = box.tile_x0(), x1 = box.tile_x1(), y1 = box.tile_y1();
      for (int y = box.tile_y0(); y <= y1; ++y) {
        for (int x = x0; x <= x1; ++x) visit(y * out.tiles_x + x, out.order[i]);
      }
    }
  };
  parallel.For(num_chunks, [&](int64_t chunk) {
    int64_t* counts = histogram + chunk * num_tiles;
    std::memset(counts, 0, num_tiles * sizeof(int64_t));
    for_tiles(chunk, [&](int tile, int32_t) { ++counts[tile]; });
  });
  out.tile_begin = scratch.tile_begin.Get(num_tiles + 1);
  int64_t position = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    out.tile_begin[tile] = position;
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      int64_t& count = histogram[chunk * num_tiles + tile];
      const int64_t here = count;
      count = position;
      position += here;
    }
  }
  out.tile_begin[num_tiles] = position;
  out.lists = scratch.lists.Get(position);
  parallel.For(num_chunks, [&](int64_t chunk) {
    int64_t* next = histogram + chunk * num_tiles;
    for_tiles(chunk, [&](int tile, int32_t id) { out.lists[next[tile]++] = id; });
  });
  AddStageTime(kStageBin, Now() - projected);
  return out;
}

}  // namespace cosurfgs

// Seconds per stage (see Stage) since the library was loaded.
extern "C" void cosurfgs_stage_seconds(double* out) {
  for (int stage = 0; stage < cosurfgs::kNumStages; ++stage)
    out[stage] = cosurfgs::stage_nanoseconds[stage] * 1e-9;
}
