// What one GPU thread does to find out which surfels touch which tile, front to back.
//
// Surfels are sorted by depth first (N keys of 32 bits), then spread over their tiles in that
// order, and the pairs are sorted by tile alone (stable, 8 to 16 bits): a key of tile and depth for
// every pair would take two to three times as many passes over three times the bytes. Ties keep the
// order of ids, as in raster/binning.cc.
#pragma once

#include "gpu/project.h"

namespace cosurfgs {
namespace COSURFGS_VARIANT {

struct CountArgs {
  const uint32_t* sorted_keys;
  const int32_t* order;
  const Record* records;
  int64_t num_surfels;
  int first_tile_row, end_tile_row;
  int64_t* counts;  // num_surfels + 1; their exclusive sum ends with the number of pairs
};

struct CountPairs {
  using Args = CountArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t rank) {
    const bool is_drawn = rank < args.num_surfels && args.sorted_keys[rank] != kHiddenKey;
    args.counts[rank] = is_drawn ? PairsInRows(args.records[args.order[rank]].box,
                                               args.first_tile_row, args.end_tile_row)
                                 : 0;
  }
};

// Number of elements of the ascending values[0, n) that are not above x (kOrEqual) or below it.
template <bool kOrEqual, class T>
COSURFGS_FN int64_t CountBelow(const T* values, int64_t n, T x) {
  int64_t low = 0, high = n;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (values[middle] < x || (kOrEqual && values[middle] == x)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

struct EmitArgs {
  const int64_t* offsets;  // num_surfels + 1, by rank
  const int32_t* order;
  const Record* records;
  int64_t num_surfels;
  int tiles_x;
  uint32_t* tiles;  // per pair
  int32_t* ids;
};

// One thread per pair, which looks for its surfel: a thread per surfel would wait for the one that
// covers the image.
struct EmitPair {
  using Args = EmitArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t pair) {
    const int64_t rank = CountBelow<true>(args.offsets, args.num_surfels + 1, pair) - 1;
    const int32_t id = args.order[rank];
    const Box& box = args.records[id].box;
    const int width = box.tile_x1() - box.tile_x0() + 1, within = int(pair - args.offsets[rank]);
    args.tiles[pair] =
        uint32_t((box.tile_y0() + within / width) * args.tiles_x + box.tile_x0() + within % width);
    args.ids[pair] = id;
  }
};

struct TileBeginArgs {
  const uint32_t* sorted_tiles;
  int64_t num_pairs;
  int64_t* tile_begin;  // num_tiles + 1
};

struct FindTileBegin {
  using Args = TileBeginArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t tile) {
    args.tile_begin[tile] = CountBelow<false>(args.sorted_tiles, args.num_pairs, uint32_t(tile));
  }
};

struct ScatterArgs {
  const int64_t* offsets;
  const int32_t* order;
  int64_t* offset_of;  // by id
};

struct ScatterOffset {
  using Args = ScatterArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t rank) {
    args.offset_of[args.order[rank]] = args.offsets[rank];
  }
};

struct StatusArgs {
  const int32_t* num_invalid;
  int64_t num_pairs;
  int32_t* status;
};

struct WriteStatus {
  using Args = StatusArgs;
  COSURFGS_FN static void Run(const Args& args, int64_t) {
    args.status[0] = *args.num_invalid;
    args.status[1] = int32_t(args.num_pairs < INT32_MAX ? args.num_pairs : INT32_MAX);
  }
};

}  // namespace COSURFGS_VARIANT
}  // namespace cosurfgs
