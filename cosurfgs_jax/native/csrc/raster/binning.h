// Which surfels touch which tile, front to back.
#pragma once

#include <cstdint>

#include "common/parallel_for.h"
#include "raster/raster.h"
#include "common/scratch.h"

namespace cosurfgs {

// One view's surfels, projected, ordered and spread over the tiles.
struct Binned {
  Record* records;
  int32_t* order;  // ids of the drawn surfels by camera z, ties by id
  Box* boxes;      // of the drawn surfels, in that order
  int32_t num_drawn, num_invalid;
  int tiles_x, tiles_y;
  int64_t* tile_begin;  // num_tiles + 1 positions in `lists`
  int32_t* lists;
  Tile tile(int index) const {
    return {index % tiles_x * kTile, index / tiles_x * kTile, lists + tile_begin[index],
            int32_t(tile_begin[index + 1] - tile_begin[index])};
  }
  int num_tiles() const { return tiles_x * tiles_y; }
};

struct BinningScratch {
  Scratch<Record> records;
  Scratch<float> depths;
  Scratch<Box> boxes;
  Scratch<CullStatus> statuses;
  Scratch<int32_t> order, other, lists;
  Scratch<uint32_t> keys, other_keys;
  Scratch<int64_t> tile_begin, histogram;
};

Binned ProjectAndBin(const Surfels& surfels, const View& view, Parallel& parallel,
                     BinningScratch& scratch);

// Wall time spent per stage since the library was loaded, for profiles.
enum Stage {
  kStageProject,
  kStageBin,
  kStageBlend,
  kStageBlendBackward,
  kStageProjectBackward,
  kNumStages
};
void AddStageTime(Stage stage, double seconds);
double Now();

}  // namespace cosurfgs
