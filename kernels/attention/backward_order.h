#pragma once

#include "kernels/common/host_device.h"

namespace fovea::kernels {

/// When a tile of keys adds to the gradients of each step of queries, so that additions in global
/// memory have a fixed order with few waits.
///
/// Tiles are numbered head by head; block b of a grid takes b, b + blocks, ...: wave w are the
/// tiles from w blocks on. Those of one head in one wave begin at steps `apart` from one another,
/// and each goes round all steps: at a time they are at different ones, that still are in the
/// cache. To a step they add in the order in which they come to it, after all those of earlier
/// waves. A tile waits only for ones of earlier waves, or that have fewer steps behind them, or as
/// many and a lower number: nothing waits for itself, if the blocks of a grid run at the same time.
struct AddOrder {
  int before;  ///< tiles of the head in earlier waves
  int count;   ///< its tiles in this wave
  int index;   ///< this one among them
  int steps;   ///< to go round
  int places;  ///< steps at which tiles begin; several at one if there are more tiles than steps
  int apart;   ///< steps from one place to the next

  /// Tile `tile` of all, with so many of each head, in a grid of so many blocks, at places at most
  /// so many steps apart.
  FOVEA_HD static AddOrder of(int tile, int tiles, int blocks, int steps, int most_apart) {
    const auto lesser = [](int a, int b) { return a < b ? a : b; };
    const int of_head = tile % tiles, of_wave = tile % blocks;
    const int index = lesser(of_head, of_wave);
    const int count = index + lesser(tiles - of_head, blocks - of_wave);
    const int places = lesser(count, steps);
    return {of_head - index, count, index, steps, places, lesser(steps / places, most_apart)};
  }

  FOVEA_HD int first_step() const { return index % places * apart; }

  /// How many tiles of the head add to a step before this one does.
  FOVEA_HD int rank(int step) const {
    const int own = index % places;
    // Places come to the step in falling order from this one on, round to the one above it.
    const int last = step / apart < places ? step / apart : places - 1;
    const int ahead = last >= own ? last - own : last - own + places;
    // Places below `more` have one tile more than the others.
    const int more = count % places;
    const auto below = [&](int place) { return place < more ? place : more; };
    const int extra = below(last + 1) - below(own + 1) + (last >= own ? 0 : more);
    return before + ahead * (count / places) + extra + index / places;
  }
};

}  // namespace fovea::kernels
