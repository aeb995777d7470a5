#include "core/attention/block_mask.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/device_constants.h"
#include "core/check.h"

namespace fovea {
namespace {

// Ends of blocks of `size` from `first` on.
void append_uniform(int64_t first, int64_t count, int64_t size, std::vector<int64_t>& offsets) {
  for (int64_t done = 0; done < count; done += size) {
    offsets.push_back(first + std::min(done + size, count));
  }
}

void append_tiles(const std::array<int64_t, 3>& grid, const std::array<int64_t, 3>& tile,
                  std::vector<int64_t>& offsets) {
  const auto side = [&](size_t axis, int64_t at) { return std::min(tile[axis], grid[axis] - at); };
  for (int64_t t = 0; t < grid[0]; t += tile[0]) {
    for (int64_t y = 0; y < grid[1]; y += tile[1]) {
      for (int64_t x = 0; x < grid[2]; x += tile[2]) {
        offsets.push_back(offsets.back() + side(0, t) * side(1, y) * side(2, x));
      }
    }
  }
}

int64_t largest(const std::vector<int64_t>& offsets) {
  int64_t size = 0;
  for (size_t i = 1; i < offsets.size(); ++i) size = std::max(size, offsets[i] - offsets[i - 1]);
  return size;
}

}  // namespace

BlockAxis BlockAxis::uniform(const TokenLayout& layout, int64_t size) {
  require(size >= 1, ErrorCode::usage, "block axis", "blocks of ", size, " positions");
  BlockAxis out;
  out.host_ = {0};
  int64_t first = 0;
  for (const Segment& segment : layout.segments()) {
    append_uniform(first, segment.capacity, size, out.host_);
    first += segment.capacity;
  }
  out.max_size_ = largest(out.host_);
  return out;
}

BlockAxis BlockAxis::tiles(const TokenLayout& layout, std::array<int64_t, 3> tile) {
  const int64_t size = tile[0] * tile[1] * tile[2];
  require(tile[0] >= 1 && tile[1] >= 1 && tile[2] >= 1, ErrorCode::usage, "block axis",
          "tile sides must be at least 1");
  BlockAxis out;
  out.host_ = {0};
  for (const Segment& segment : layout.segments()) {
    if (segment.kind == Segment::Kind::grid) {
      append_tiles(segment.grid, tile, out.host_);
    } else {
      append_uniform(out.host_.back(), segment.capacity, size, out.host_);
    }
  }
  out.max_size_ = largest(out.host_);
  return out;
}

BlockAxis BlockAxis::from_host(std::vector<int64_t> offsets) {
  require(!offsets.empty() && offsets[0] == 0 && std::is_sorted(offsets.begin(), offsets.end()),
          ErrorCode::usage, "block axis", "expected offsets that ascend from 0");
  BlockAxis out;
  out.host_ = std::move(offsets);
  out.max_size_ = largest(out.host_);
  return out;
}

BlockAxis BlockAxis::from_offsets(at::Tensor offsets, int64_t max_size) {
  const bool is_integer = offsets.defined() &&
                          (offsets.scalar_type() == at::kInt || offsets.scalar_type() == at::kLong);
  require(is_integer && offsets.dim() == 3 && offsets.size(2) >= 1 && max_size >= 0,
          ErrorCode::usage, "block axis",
          "expected int32 or int64 offsets [batch or 1, heads or 1, num_blocks + 1]");
  BlockAxis out;
  out.device_offsets_ = std::move(offsets);
  out.max_size_ = max_size;
  return out;
}

int64_t BlockAxis::num_blocks() const {
  if (device_offsets_.defined()) return device_offsets_.size(2) - 1;
  return host_.empty() ? 0 : static_cast<int64_t>(host_.size()) - 1;
}

at::Tensor BlockAxis::offsets(at::Device device) const {
  if (device_offsets_.defined()) return device_offsets_.to(device, at::kLong);
  return device_numbers(host_, device).view({1, 1, -1});
}

at::Tensor BlockAxis::block_of_position(int64_t seq_len, at::Device device) const {
  const at::Tensor starts = offsets(device).contiguous();
  const at::Tensor positions = at::arange(seq_len, starts.options())
                                   .expand({starts.size(0), starts.size(1), seq_len})
                                   .contiguous();
  // Of blocks that begin together all but the last are empty.
  const at::Tensor behind = at::searchsorted(starts, positions, /*out_int32=*/false,
                                             /*right=*/true);
  return (behind - 1).clamp(0, std::max<int64_t>(num_blocks() - 1, 0));
}

std::string BlockAxis::describe() const {
  if (device_offsets_.defined()) return str(num_blocks(), " blocks up to ", max_size_);
  return str(num_blocks(), " blocks of ", max_size_);
}

}  // namespace fovea
