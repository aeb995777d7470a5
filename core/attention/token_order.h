#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/token_layout.h"

namespace fovea {

/// In which order one side of an attention takes its tokens: a permutation from positions to rows,
/// the tokens as they are passed in. Known to the host as long as it is not an index tensor.
///
/// Tiles and axes sort the tokens of each grid segment; all other segments, and the segments among
/// themselves, stay where they are.
class TokenOrder {
 public:
  enum class Kind { identity, tiles, axes, index };

  TokenOrder() = default;  ///< rows as they are

  /// Tile after tile of tile[0] × tile[1] × tile[2] tokens (frames, height, width), in both width
  /// fastest; tiles at the far borders are smaller (tile-contiguous order of Sliding Tile
  /// Attention, Zhang et al., 2025, section 3).
  ///
  /// throws  Error usage when a side is below 1
  static TokenOrder tiles(std::array<int64_t, 3> tile);

  /// Per head, or one for all: the grid's axes from the slowest to the fastest; {0, 1, 2} is the
  /// identity (PAROAttention, Zhao et al., 2025, section 4.1).
  ///
  /// throws  Error usage for what is no permutation of 0, 1, 2
  static TokenOrder axes(std::vector<std::array<int64_t, 3>> per_head);

  /// rows    int32 or int64 [batch or 1, heads or 1, seq_len], each row of the last axis a
  ///         permutation; not read by the host
  /// throws  Error usage for another type or number of dimensions
  static TokenOrder index(at::Tensor rows);

  Kind kind() const { return kind_; }
  bool is_identity() const { return kind_ == Kind::identity; }
  const std::array<int64_t, 3>& tile() const { return axes_[0]; }
  /// What `axes` was given.
  const std::vector<std::array<int64_t, 3>>& axes_per_head() const { return axes_; }
  /// What `index` was given.
  const at::Tensor& index_rows() const { return index_; }

  /// int64 [batch or 1, heads or 1, seq_len] on `device`: the row of each position.
  ///
  /// throws  Error usage when an index has another length than the layout
  at::Tensor rows(const TokenLayout& layout, at::Device device) const;

  /// For example "identity", "tiles 4x8x8", "axes 0.1.2 2.0.1", "index".
  std::string describe() const;

 private:
  at::Tensor sorted_rows(const TokenLayout& layout) const;  // of tiles and axes, on the CPU

  Kind kind_ = Kind::identity;
  std::vector<std::array<int64_t, 3>> axes_;  // per head; of tiles one, their sides
  at::Tensor index_;
};

}  // namespace fovea
