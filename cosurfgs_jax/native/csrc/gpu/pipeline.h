// The order of work on a GPU, for any `Device` that launches bodies: gpu/cuda_device.h, or the
// emulation in tests/native/.
//
// Views are drawn one after the other, each with one read-back (bands of gradients: a few more):
// the number of (surfel, tile) pairs decides how much memory the binning takes and how many threads
// it has. Waiting for it costs the host some ten microseconds and an empty queue; an upper bound
// instead would have to be guessed, paid for in memory and sorting by every call, and be wrong some
// day in the middle of a training. Only the stream is waited for, never the device.
//
// The backward call reads the records and the lists of tiles that the forward call has left. If
// that was given no memory for them, too little, or several views, it projects and bins again, like
// the CPU's.
#pragma once

#include <algorithm>
#include <vector>

#include "gpu/binning.h"
#include "gpu/blend.h"
#include "gpu/project.h"
#include "gpu/removal.h"
#include "gpu/rows.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

// What both calls share.
struct RasterCall {
  Surfels surfels;
  const float *camera_from_world, *intrinsics, *background;
  int64_t num_views;
  int width, height;
  float near, low_pass;
  int maps;
  bool is_orthographic;
};

// Memory, at a multiple of 64 bytes as all arrays of XLA, in which the forward call leaves its work
// for the backward call; of 0 bytes if it is not to.
struct Kept {
  const uint8_t* data;
  int64_t bytes;
};

// Pointers of the first view, those of maps that were not asked for are null.
struct ForwardResults {
  Image image;
  float* contributions;
  int32_t* status;
  Kept kept;
};

struct BackwardCall {
  Image image;
  ImageGradient gradient;
  SurfelGradients out;
  int64_t num_probe;       // elements of out.probe
  float* camera_gradient;  // [views, 4, 4]
  Kept kept;               // of the same operands
  bool is_deterministic;   // the same bits in every call; else gradients are added by whoever comes
                           // first
};

inline Image Offset(const Image& image, int64_t pixels) {
  const auto at = [](auto* map, int64_t offset) { return map ? map + offset : nullptr; };
  return {at(image.color, 3 * pixels),      at(image.transmittance, pixels),
          at(image.depth_sum, pixels),      at(image.median_depth, pixels),
          at(image.normal_sum, 3 * pixels), at(image.plane_sum, pixels),
          at(image.distortion, pixels),     at(image.last, pixels),
          at(image.median_index, pixels)};
}
inline ImageGradient Offset(const ImageGradient& g, int64_t pixels) {
  const auto at = [](const float* map, int64_t offset) { return map ? map + offset : nullptr; };
  return {at(g.color, 3 * pixels),    at(g.transmittance, pixels),  at(g.depth_sum, pixels),
          at(g.median_depth, pixels), at(g.normal_sum, 3 * pixels), at(g.plane_sum, pixels),
          at(g.distortion, pixels)};
}

template <class Device>
class Pipeline {
 public:
  // max_band_pairs: rows of gradients in memory at a time, 88 bytes each.
  Pipeline(Device& device, const RasterCall& call, int64_t max_band_pairs)
      : device_(device),
        call_(call),
        max_band_pairs_(max_band_pairs),
        n_(call.surfels.num_surfels),
        pixels_(int64_t(call.width) * call.height),
        tiles_x_((call.width + kTile - 1) / kTile),
        tiles_y_((call.height + kTile - 1) / kTile) {
    views_ = Get<View>(kViews, call.num_views);
    device_.template For<MakeViews>(
        call.num_views, {call.camera_from_world, call.intrinsics, call.width, call.height,
                         call.near, call.low_pass, call.is_orthographic, views_});
  }

  void Forward(const ForwardResults& results) {
    PlaceKept(results.kept);
    for (int64_t v = 0; v < call_.num_views; ++v) {
      int32_t* num_invalid = Get<int32_t>(kNumInvalid, 1);
      device_.Zero(num_invalid, sizeof(int32_t));
      Bin(v, num_invalid);
      BlendArgs args = MakeBlendArgs(v);
      args.image = Offset(results.image, v * pixels_);
      if (results.contributions) {
        args.rows = MakeRows(kContributions, num_pairs_, offsets_, 0);
      }
      switch (call_.maps) {
        case kColor:
          Blend<kColor>(args);
          break;
        case kGeometry:
          Blend<kGeometry>(args);
          break;
        default:
          Blend<kAll>(args);
      }
      if (results.contributions) {
        ReduceRows<SumOfContributions, kContributions>(args.rows.rows);
        float* sums = results.contributions + v * n_ * kContributions;
        device_.template For<TakeContributions>(n_,
                                                {keys_, args.rows.offset, args.rows.rows, sums});
      }
      device_.template For<WriteStatus>(1, {num_invalid, num_pairs_, results.status + 2 * v});
    }
  }

  // What removing each surfel changes: kRemoval numbers per surfel and view.
  void Removal(float* effects) {
    for (int64_t v = 0; v < call_.num_views; ++v) {
      Bin(v, nullptr);
      BlendArgs args = MakeBlendArgs(v);
      args.rows = MakeRows(kRemoval, num_pairs_, offsets_, 0);
      device_.template Blocks<BlendTileRemovalBlock>(tiles_x_ * tiles_y_, args);
      ReduceRows<Sum, kRemoval>(args.rows.rows);
      device_.template For<TakeRemoval>(
          n_, {keys_, args.rows.offset, args.rows.rows, effects + v * n_ * kRemoval});
    }
  }

  void Backward(const BackwardCall& backward) {
    if (call_.num_views == 0) WriteNoGradients(backward);
    for (int64_t v = 0; v < call_.num_views; ++v) {
      if (!Restore(backward)) Bin(v, nullptr);
      BlendArgs args = MakeBlendArgs(v);
      args.image = Offset(backward.image, v * pixels_);
      args.gradient = Offset(backward.gradient, v * pixels_);
      RowsOfSurfels rows;
      switch (call_.maps) {
        case kColor:
          rows = BlendBackward<kColor>(args, backward);
          break;
        case kGeometry:
          rows = BlendBackward<kGeometry>(args, backward);
          break;
        default:
          rows = BlendBackward<kAll>(args, backward);
      }
      switch (call_.surfels.sh_degree) {
        case 0:
          ProjectBackward<0>(backward, v, rows);
          break;
        case 1:
          ProjectBackward<1>(backward, v, rows);
          break;
        case 2:
          ProjectBackward<2>(backward, v, rows);
          break;
        default:
          ProjectBackward<3>(backward, v, rows);
      }
    }
  }

 private:
  enum Slot {
    kViews,
    kRecords,
    kKeys,
    kIds,
    kSortedKeys,
    kOrder,
    kCounts,
    kOffsets,
    kNumInvalid,
    kTiles,
    kPairIds,
    kSortedTiles,
    kLists,
    kTileBegin,
    kOffsetOf,
    kRows,
    kLarge,
    kSums,
    kCameraParts,
    kNumSlots
  };

  // Uninitialised memory that lives as long as the call; a slot is used again by the next view.
  template <class T>
  T* Get(Slot slot, int64_t count) {
    const size_t bytes = std::max<int64_t>(1, count) * sizeof(T);
    if (bytes > capacity_[slot]) {
      memory_[slot] = device_.Allocate(bytes);
      capacity_[slot] = bytes;
    }
    return static_cast<T*>(memory_[slot]);
  }

  // Puts the slots that the backward call reads into `kept`: those of fixed size, then the lists of
  // tiles, which get other memory if what is left is too little. False if nothing is kept.
  bool PlaceKept(const Kept& kept) {
    const struct {
      Slot slot;
      int64_t bytes;
    } parts[] = {{kRecords, n_ * int64_t(sizeof(Record))},
                 {kKeys, n_ * int64_t(sizeof(uint32_t))},
                 {kOrder, n_ * int64_t(sizeof(int32_t))},
                 {kOffsets, (n_ + 1) * int64_t(sizeof(int64_t))},
                 {kTileBegin, (tiles_x_ * tiles_y_ + 1) * int64_t(sizeof(int64_t))}};
    const auto padded = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    int64_t used = 0;
    for (const auto& part : parts) used += padded(part.bytes);
    if (call_.num_views != 1 || kept.bytes < used) return false;
    uint8_t* data = const_cast<uint8_t*>(kept.data);  // the backward call only reads
    for (const auto& part : parts) {
      memory_[part.slot] = data;
      capacity_[part.slot] = part.bytes;
      data += padded(part.bytes);
    }
    memory_[kLists] = data;
    capacity_[kLists] = kept.bytes - used;
    return true;
  }

  // What Bin made in the forward call; false if that is not at hand.
  bool Restore(const BackwardCall& backward) {
    if (!PlaceKept(backward.kept)) return false;
    num_pairs_ = device_.Read(static_cast<int64_t*>(memory_[kOffsets]) + n_);
    const bool has_lists = num_pairs_ * int64_t(sizeof(int32_t)) <= int64_t(capacity_[kLists]);
    if (!has_lists || NeedsBands(backward.is_deterministic)) {  // bands want more than is kept
      for (const Slot slot : {kRecords, kKeys, kOrder, kOffsets, kTileBegin, kLists})
        capacity_[slot] = 0;
      return false;
    }
    records_ = static_cast<Record*>(memory_[kRecords]);
    keys_ = static_cast<uint32_t*>(memory_[kKeys]);
    order_ = static_cast<int32_t*>(memory_[kOrder]);
    offsets_ = static_cast<int64_t*>(memory_[kOffsets]);
    tile_begin_ = static_cast<int64_t*>(memory_[kTileBegin]);
    lists_ = static_cast<int32_t*>(memory_[kLists]);
    return true;
  }

  // Projects view v and makes the lists of its tiles. num_invalid may be null.
  void Bin(int64_t v, int32_t* num_invalid) {
    records_ = Get<Record>(kRecords, n_);
    keys_ = Get<uint32_t>(kKeys, n_);
    int32_t* ids = Get<int32_t>(kIds, n_);
    const ProjectArgs args{call_.surfels, views_ + v, records_, keys_, ids, num_invalid};
    switch (call_.surfels.sh_degree) {
      case 0:
        device_.template For<ProjectSurfel<0>>(n_, args);
        break;
      case 1:
        device_.template For<ProjectSurfel<1>>(n_, args);
        break;
      case 2:
        device_.template For<ProjectSurfel<2>>(n_, args);
        break;
      default:
        device_.template For<ProjectSurfel<3>>(n_, args);
    }

    sorted_keys_ = Get<uint32_t>(kSortedKeys, n_);
    order_ = Get<int32_t>(kOrder, n_);
    device_.SortPairs(keys_, sorted_keys_, ids, order_, n_, 32);
    num_pairs_ = CountRows(0, tiles_y_);

    uint32_t *tiles = Get<uint32_t>(kTiles, num_pairs_),
             *sorted_tiles = Get<uint32_t>(kSortedTiles, num_pairs_);
    int32_t* pair_ids = Get<int32_t>(kPairIds, num_pairs_);
    lists_ = Get<int32_t>(kLists, num_pairs_);
    device_.template For<EmitPair>(num_pairs_,
                                   {offsets_, order_, records_, n_, tiles_x_, tiles, pair_ids});
    const int num_tiles = tiles_x_ * tiles_y_;
    int bits = 1;
    while ((int64_t(1) << bits) < num_tiles) ++bits;
    device_.SortPairs(tiles, sorted_tiles, pair_ids, lists_, num_pairs_, bits);
    tile_begin_ = Get<int64_t>(kTileBegin, num_tiles + 1);
    device_.template For<FindTileBegin>(num_tiles + 1, {sorted_tiles, num_pairs_, tile_begin_});
  }

  // Makes offsets_: where the pairs of each surfel (by rank) in tile rows [first, end) begin.
  // Returns their number.
  int64_t CountRows(int first, int end) {
    int64_t* counts = Get<int64_t>(kCounts, n_ + 1);
    offsets_ = Get<int64_t>(kOffsets, n_ + 1);
    device_.template For<CountPairs>(n_ + 1,
                                     {sorted_keys_, order_, records_, n_, first, end, counts});
    device_.ExclusiveSum(counts, offsets_, n_ + 1);
    return device_.Read(offsets_ + n_);
  }

  BlendArgs MakeBlendArgs(int64_t v) {
    BlendArgs args{};
    args.view = views_ + v;
    args.records = records_;
    args.tile_begin = tile_begin_;
    args.lists = lists_;
    args.tiles_x = tiles_x_;
    args.low_pass = call_.low_pass;
    args.background = call_.background;
    return args;
  }

  // Zeroed rows for pairs: blocks write only those that a pixel adds to.
  PairRows MakeRows(int row_size, int64_t num_pairs, const int64_t* offsets, int first_tile_row) {
    float* rows = Get<float>(kRows, row_size * num_pairs);
    int64_t* offset_of = Get<int64_t>(kOffsetOf, n_);
    device_.Zero(rows, row_size * num_pairs * sizeof(float));
    device_.template For<ScatterOffset>(MostSeen(), {offsets, order_, offset_of});
    return {rows, offset_of, first_tile_row};
  }

  // Whether rows of gradients for all pairs at a time would be too many.
  bool NeedsBands(bool is_deterministic) const {
    return is_deterministic && num_pairs_ > max_band_pairs_;
  }

  // Surfels that are seen have a pair at least, and come first in the order by depth.
  int64_t MostSeen() const { return std::min(n_, num_pairs_); }

  // Adds up the rows of every surfel, at offsets_, into its first one.
  template <class Op, int kSize>
  void ReduceRows(float* rows) {
    int32_t* num_large = Get<int32_t>(kLarge, 1 + std::min(n_, num_pairs_ / kFewRows));
    const AddRowsArgs args{offsets_, rows, num_large, num_large + 1};
    device_.Zero(num_large, sizeof(int32_t));
    device_.template For<AddRows<Op, kSize>>(MostSeen() * kSize, args);
    if (num_pairs_ > kFewRows) device_.template Blocks<AddLargeRows<Op, kSize>>(kLargeBlocks, args);
  }

  template <int kMaps>
  void Blend(const BlendArgs& args) {
    if (args.rows.rows) {
      device_.template Blocks<BlendTileBlock<kMaps, true>>(tiles_x_ * tiles_y_, args);
    } else {
      device_.template Blocks<BlendTileBlock<kMaps, false>>(tiles_x_ * tiles_y_, args);
    }
  }

  // The gradients of every surfel's projection. Band by band of tile rows if rows for all pairs
  // would be more than max_band_pairs_ (but at least one tile row), or in one go if they are added
  // by whoever comes first.
  template <int kMaps>
  RowsOfSurfels BlendBackward(BlendArgs& args, const BackwardCall& backward) {
    return backward.out.probe ? BlendBackward<kMaps, true>(args, backward.is_deterministic)
                              : BlendBackward<kMaps, false>(args, backward.is_deterministic);
  }
  template <int kMaps, bool kHasProbe>
  RowsOfSurfels BlendBackward(BlendArgs& args, bool is_deterministic) {
    constexpr int kUsed = BlendTileBackwardBlock<kMaps, true, kHasProbe>::kUsed;
    if (is_deterministic && !NeedsBands(is_deterministic)) {
      args.rows = MakeRows(kUsed, num_pairs_, offsets_, 0);
      device_.template Blocks<BlendTileBackwardBlock<kMaps, true, kHasProbe>>(tiles_x_ * tiles_y_,
                                                                              args);
      ReduceRows<Sum, kUsed>(args.rows.rows);
      return {args.rows.rows, kUsed, args.rows.offset};
    }
    args.sums = Get<float>(kSums, kUsed * n_);
    device_.Zero(args.sums, kUsed * n_ * sizeof(float));
    if (is_deterministic) {
      BlendBands<kMaps, kHasProbe, kUsed>(args);
    } else {
      device_.template Blocks<BlendTileBackwardBlock<kMaps, false, kHasProbe>>(tiles_x_ * tiles_y_,
                                                                               args);
    }
    return {args.sums, kUsed, nullptr};
  }

  template <int kMaps, bool kHasProbe, int kUsed>
  void BlendBands(BlendArgs& args) {
    const std::vector<int64_t> begins = device_.ReadEvery(tile_begin_, tiles_x_, tiles_y_ + 1);
    for (int first = 0, end; first < tiles_y_; first = end) {
      end = BandEnd(begins, first);
      args.rows = MakeRows(kUsed, CountRows(first, end), offsets_, first);
      args.first_tile = first * tiles_x_;
      device_.template Blocks<BlendTileBackwardBlock<kMaps, true, kHasProbe>>(
          (end - first) * tiles_x_, args);
      ReduceRows<Sum, kUsed>(args.rows.rows);
      device_.template For<AddBand<kUsed>>(MostSeen() * kUsed,
                                           {offsets_, order_, args.rows.rows, args.sums});
    }
  }

  // From the gradients of the projections of view v to those of the surfels and of its camera.
  template <int kDegree>
  void ProjectBackward(const BackwardCall& backward, int64_t v, const RowsOfSurfels& rows) {
    using Block = ProjectBackwardBlock<kDegree>;
    const int64_t blocks = (n_ + Block::kThreads - 1) / Block::kThreads;
    double* parts = Get<double>(kCameraParts, 12 * blocks);
    device_.template Blocks<Block>(
        blocks, {call_.surfels, views_ + v, keys_, records_, rows, backward.out, v == 0, parts});
    device_.template Blocks<CameraSumBlock>(1, {parts, blocks, backward.camera_gradient + 16 * v});
  }

  // The first view writes every gradient; here there is none.
  void WriteNoGradients(const BackwardCall& backward) {
    const SurfelGradients& out = backward.out;
    SurfelParams<float> one;  // only for the sizes of its fields
    ForEachField(out, one, [&](const char*, float* array, const auto& numbers) {
      device_.Zero(array, n_ * sizeof(numbers));
    });
    device_.Zero(out.sh, 3 * call_.surfels.num_sh * n_ * sizeof(float));
    device_.Zero(out.probe, backward.num_probe * sizeof(float));
  }

  // begins: where the pairs of each row of tiles begin, and where they end.
  int BandEnd(const std::vector<int64_t>& begins, int first) const {
    int end = first + 1;
    while (end < tiles_y_ && begins[end + 1] - begins[first] <= max_band_pairs_) ++end;
    return end;
  }

  Device& device_;
  const RasterCall call_;
  const int64_t max_band_pairs_, n_, pixels_;
  const int tiles_x_, tiles_y_;
  void* memory_[kNumSlots] = {};
  size_t capacity_[kNumSlots] = {};
  // Of the present view.
  View* views_ = nullptr;
  Record* records_ = nullptr;
  uint32_t *keys_ = nullptr, *sorted_keys_ = nullptr;
  int32_t *order_ = nullptr, *lists_ = nullptr;
  int64_t *offsets_ = nullptr, *tile_begin_ = nullptr;
  int64_t num_pairs_ = 0;
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
