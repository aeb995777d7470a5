#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace fovea::models {

/// Overlapping tiles that an autoencoder works through one by one, in pixels; the defaults are
/// diffusers'.
struct VaeTiling {
  int64_t tile_height = 256;
  int64_t tile_width = 256;
  int64_t stride_height = 192;  ///< from one tile's top to the next one's; the rest overlaps
  int64_t stride_width = 192;

  /// The same in units of `ratio` pixels.
  ///
  /// throws  Error usage when a size is no positive multiple of ratio, or a stride exceeds its tile
  VaeTiling in_units(int64_t ratio) const;
};

/// Where the tiles of a picture lie.
class TileGrid {
 public:
  /// tiling  in the unit of height and width
  TileGrid(const VaeTiling& tiling, int64_t height, int64_t width);

  int64_t num_tiles() const { return static_cast<int64_t>(tops_.size() * lefts_.size()); }
  int64_t num_columns() const { return static_cast<int64_t>(lefts_.size()); }
  /// Tile `index`, row by row, of video [..., height, width]: a view, smaller at the far edges.
  at::Tensor cut(const at::Tensor& video, int64_t index) const;

 private:
  VaeTiling tiling_;
  std::vector<int64_t> tops_;
  std::vector<int64_t> lefts_;
};

/// Puts tiles together: each is blended linearly into the one above and then into the one to its
/// left over their overlap, as `AutoencoderKLWan.tiled_decode` does.
///
/// tiles    videos of one frame count, row by row
/// tiling   in the tiles' unit
/// returns  [batch, channels, frames, height, width]
at::Tensor join_tiles(std::vector<at::Tensor> tiles, int64_t num_columns, const VaeTiling& tiling);

}  // namespace fovea::models
