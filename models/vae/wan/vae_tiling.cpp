#include "models/vae/wan/vae_tiling.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::models {
namespace {

// `tile` with its first places along `dim` faded in from the last ones of `before`.
at::Tensor fade_in(const at::Tensor& before, const at::Tensor& tile, int64_t dim, int64_t overlap) {
  const int64_t extent = std::min({before.size(dim), tile.size(dim), overlap});
  if (extent <= 0) return tile;
  std::vector<int64_t> shape(tile.dim(), 1);
  shape[dim] = extent;
  const at::Tensor ramp = at::arange(extent, at::kDouble).div(static_cast<double>(extent));
  const auto weights = [&](const at::Tensor& values) {
    const bool wide = tile.scalar_type() == at::kDouble;
    return values.to(tile.device(), wide ? at::kDouble : at::kFloat).view(shape);
  };
  const at::Tensor mixed =
      before.narrow(dim, before.size(dim) - extent, extent) * weights(1 - ramp) +
      tile.narrow(dim, 0, extent) * weights(ramp);
  return at::cat({mixed.to(tile.scalar_type()), tile.narrow(dim, extent, tile.size(dim) - extent)},
                 dim);
}

std::vector<int64_t> starts(int64_t size, int64_t stride) {
  std::vector<int64_t> result;
  for (int64_t start = 0; start < size; start += stride) result.push_back(start);
  return result;
}

}  // namespace

VaeTiling VaeTiling::in_units(int64_t ratio) const {
  for (const int64_t size : {tile_height, tile_width, stride_height, stride_width}) {
    require(size >= 1 && size % ratio == 0, ErrorCode::usage, "VAE tiling",
            "expected tile sizes and strides that are multiples of ", ratio, ", got ", size);
  }
  require(stride_height <= tile_height && stride_width <= tile_width, ErrorCode::usage,
          "VAE tiling", "expected strides up to the tile size ", tile_height, "x", tile_width,
          ", got ", stride_height, "x", stride_width);
  return {tile_height / ratio, tile_width / ratio, stride_height / ratio, stride_width / ratio};
}

TileGrid::TileGrid(const VaeTiling& tiling, int64_t height, int64_t width)
    : tiling_(tiling),
      tops_(starts(height, tiling.stride_height)),
      lefts_(starts(width, tiling.stride_width)) {}

at::Tensor TileGrid::cut(const at::Tensor& video, int64_t index) const {
  const int64_t top = tops_[index / num_columns()];
  const int64_t left = lefts_[index % num_columns()];
  const int64_t height = std::min(tiling_.tile_height, video.size(-2) - top);
  const int64_t width = std::min(tiling_.tile_width, video.size(-1) - left);
  return video.narrow(-2, top, height).narrow(-1, left, width);
}

at::Tensor join_tiles(std::vector<at::Tensor> tiles, int64_t num_columns, const VaeTiling& tiling) {
  std::vector<at::Tensor> rows;
  std::vector<at::Tensor> row;
  for (size_t index = 0; index < tiles.size(); ++index) {
    at::Tensor& tile = tiles[index];  // its neighbours fade into what it has become
    const int64_t column = static_cast<int64_t>(index) % num_columns;
    if (static_cast<int64_t>(index) >= num_columns) {
      tile =
          fade_in(tiles[index - num_columns], tile, 3, tiling.tile_height - tiling.stride_height);
    }
    if (column > 0) {
      tile = fade_in(tiles[index - 1], tile, 4, tiling.tile_width - tiling.stride_width);
    }
    row.push_back(tile.narrow(3, 0, std::min(tiling.stride_height, tile.size(3)))
                      .narrow(4, 0, std::min(tiling.stride_width, tile.size(4))));
    if (column + 1 == num_columns) {
      rows.push_back(at::cat(row, 4));
      row.clear();
    }
  }
  return at::cat(rows, 3);
}

}  // namespace fovea::models
