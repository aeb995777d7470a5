#pragma once

#include "kernels/common/host_device.h"

namespace fovea::kernels {

/// When a tile of keys adds to the gradients of each step of queries, so that additions in global
/// memory have a fixed order without waits for one another.
///
/// Tiles are numbered head by head; block b of a grid takes b, b + blocks, ...: wave w are the
/// tiles from w blocks on. Those of one head in one wave begin at steps that lie as far apart as
/// can be, and each goes round all steps: at a time they are at different ones. To a step they add
/// in the order in which they come to it, after all those of earlier waves. A tile waits only for
/// ones of earlier waves, or that have fewer steps behind them, or as many and a lower number:
/// nothing waits for itself, if the blocks of a grid run at the same time.
struct AddOrder {
  int before;  ///< tiles of the head in earlier waves
  int count;   ///< its tiles in this wave
  int index;   ///< this one among them
  int steps;   ///< to go round

  /// Tile `tile` of all, with so many of each head, in a grid of so many blocks.
  FOVEA_HD static AddOrder of(int tile, int tiles, int blocks, int steps) {
    const int of_head = tile % tiles, of_wave = tile % blocks;
    const int index = of_head < of_wave ? of_head : of_wave;
    const int in_head = tiles - of_head, in_wave = blocks - of_wave;  // from this one on
    return {of_head - index, index + (in_head < in_wave ? in_head : in_wave), index, steps};
  }

  /// Steps at which tiles begin; several tiles at one if there are more tiles than steps.
  FOVEA_HD int places() const { return count < steps ? count : steps; }
  FOVEA_HD int stride() const { return steps / places(); }
  FOVEA_HD int first_step() const { return index % places() * stride(); }

  /// How many tiles of the head add to a step before this one does.
  FOVEA_HD int rank(int step) const {
    const int all = places(), own = index % all;
    // Places come to the step in falling order from this one on, round to the one above it.
    const int last = step / stride() < all ? step / stride() : all - 1;
    const int ahead = last >= own ? last - own : last - own + all;
    // Places below `more` have one tile more than the others.
    const int more = count % all;
    const auto below = [&](int place) { return place < more ? place : more; };
    const int extra = below(last + 1) - below(own + 1) + (last >= own ? 0 : more);
    return before + ahead * (count / all) + extra + index / all;
  }
};

}  // namespace fovea::kernels
