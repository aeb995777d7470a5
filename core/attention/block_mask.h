#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/token_layout.h"

namespace fovea {

/// Consecutive blocks of positions that cover one side of a selection; any size, also 0.
class BlockAxis {
 public:
  BlockAxis() = default;

  /// Blocks of `size` positions in every segment, its last one smaller where it has to be.
  ///
  /// throws  Error usage when size is below 1
  static BlockAxis uniform(const TokenLayout& layout, int64_t size);
  /// The tiles of `TokenOrder::tiles(tile)`; other segments in blocks of a whole tile's size.
  static BlockAxis tiles(const TokenLayout& layout, std::array<int64_t, 3> tile);
  /// Blocks of any sizes.
  ///
  /// offsets  the first position of each block, and the number of positions
  /// throws   Error usage when they do not ascend from 0
  static BlockAxis from_host(std::vector<int64_t> offsets);
  /// Blocks that only the device knows.
  ///
  /// offsets   int32 or int64 [batch or 1, heads or 1, num_blocks + 1]: the first position of each
  ///           block, and the number of positions; ascending
  /// max_size  positions of the largest block that can occur
  /// throws    Error usage for another type or number of dimensions, or max_size below 0
  static BlockAxis from_offsets(at::Tensor offsets, int64_t max_size);

  int64_t num_blocks() const;
  /// Positions of the largest block that can occur.
  int64_t max_size() const { return max_size_; }
  /// First positions as far as the host knows them, num_blocks + 1 of them; empty otherwise.
  const std::vector<int64_t>& host_offsets() const { return host_; }
  /// What `from_offsets` was given; undefined where the host knows the blocks.
  const at::Tensor& device_offsets() const { return device_offsets_; }

  /// int64 [batch or 1, heads or 1, num_blocks + 1] on `device`
  at::Tensor offsets(at::Device device) const;
  /// int64 [batch or 1, heads or 1, seq_len]: the block that each position is in.
  at::Tensor block_of_position(int64_t seq_len, at::Device device) const;

  std::string describe() const;

 private:
  std::vector<int64_t> host_;
  at::Tensor device_offsets_;
  int64_t max_size_ = 0;
};

/// What becomes of the keys of a block for the queries of another one; above `exact`, number i of
/// the selection's summaries is `first_summary` + i.
namespace block_class {
constexpr uint8_t skip = 0;
constexpr uint8_t exact = 1;
constexpr uint8_t first_summary = 2;
}  // namespace block_class

}  // namespace fovea
