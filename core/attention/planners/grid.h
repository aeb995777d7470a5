#pragma once

#include <array>
#include <string>

#include "core/attention/plan.h"
#include "core/config.h"

// What planners that go by the geometry of a video share.

namespace fovea {

/// Where the one grid of a call is.
struct GridPlace {
  std::array<int64_t, 3> grid{};  ///< frames, height, width in tokens
  int64_t first_token = 0;        ///< row of its first token
};

/// throws  Error usage when queries and keys are not of the same layout with exactly one grid
GridPlace only_grid(const AttentionCall& call, const std::string& planner);

/// Number of the block that begins at a position; the host knows the blocks.
int64_t first_block(const BlockAxis& axis, int64_t position);

/// Sets tile order and tiles as the blocks of a plan whose first branch is a softmax, and of pairs
/// of tiles of the only grid those exact that are on in the maps of all three axes.
///
/// maps    bool or uint8 [tiles, tiles] of each axis, of the tiles that the axis has
/// throws  Error usage as `only_grid`
void set_tile_classes(AttentionPlan& plan, const AttentionCall& call, std::array<int64_t, 3> tile,
                      const std::array<at::Tensor, 3>& maps);

/// Three integers, 1 or more, under a key.
std::array<int64_t, 3> three(Config& options, const std::string& key,
                             std::array<int64_t, 3> fallback);

/// A cache key for plans that depend on the layouts alone.
std::string layouts_key(const AttentionCall& call);

}  // namespace fovea
