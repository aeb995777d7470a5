#include "core/attention/token_order.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

#include "core/attention/device_constants.h"
#include "core/check.h"

namespace fovea {
namespace {

using Axes = std::array<int64_t, 3>;

// Calls f(origin, size) for each tile of a grid, width fastest.
template <typename F>
void for_each_tile(const Axes& grid, const Axes& tile, F f) {
  for (int64_t t = 0; t < grid[0]; t += tile[0]) {
    for (int64_t y = 0; y < grid[1]; y += tile[1]) {
      for (int64_t x = 0; x < grid[2]; x += tile[2]) {
        f(Axes{t, y, x}, Axes{std::min(tile[0], grid[0] - t), std::min(tile[1], grid[1] - y),
                              std::min(tile[2], grid[2] - x)});
      }
    }
  }
}

void append_tiles(const Axes& grid, const Axes& tile, int64_t first, std::vector<int64_t>& rows) {
  for_each_tile(grid, tile, [&](const Axes& origin, const Axes& size) {
    for (int64_t t = 0; t < size[0]; ++t) {
      for (int64_t y = 0; y < size[1]; ++y) {
        const int64_t line = ((origin[0] + t) * grid[1] + origin[1] + y) * grid[2] + origin[2];
        for (int64_t x = 0; x < size[2]; ++x) rows.push_back(first + line + x);
      }
    }
  });
}

void append_axes(const Axes& grid, const Axes& axes, int64_t first, std::vector<int64_t>& rows) {
  const Axes stride = {grid[1] * grid[2], grid[2], 1};
  const auto side = [&](int i) { return grid[static_cast<size_t>(axes[static_cast<size_t>(i)])]; };
  const auto step = [&](int i) {
    return stride[static_cast<size_t>(axes[static_cast<size_t>(i)])];
  };
  for (int64_t a = 0; a < side(0); ++a) {
    for (int64_t b = 0; b < side(1); ++b) {
      for (int64_t c = 0; c < side(2); ++c) {
        rows.push_back(first + a * step(0) + b * step(1) + c * step(2));
      }
    }
  }
}

std::string joined(const Axes& values, char separator) {
  return str(values[0], separator, values[1], separator, values[2]);
}

}  // namespace

TokenOrder TokenOrder::tiles(Axes tile) {
  require(tile[0] >= 1 && tile[1] >= 1 && tile[2] >= 1, ErrorCode::usage, "token order",
          "tile sides must be at least 1, got ", joined(tile, 'x'));
  TokenOrder out;
  out.kind_ = Kind::tiles;
  out.axes_ = {tile};
  return out;
}

TokenOrder TokenOrder::axes(std::vector<Axes> per_head) {
  require(!per_head.empty(), ErrorCode::usage, "token order", "axes of no head");
  for (const Axes& axes : per_head) {
    Axes sorted = axes;
    std::sort(sorted.begin(), sorted.end());
    require(sorted == Axes{0, 1, 2}, ErrorCode::usage, "token order",
            "expected a permutation of the axes 0, 1, 2, got ", joined(axes, '.'));
  }
  TokenOrder out;
  out.kind_ = Kind::axes;
  out.axes_ = std::move(per_head);
  return out;
}

TokenOrder TokenOrder::index(at::Tensor rows) {
  const bool is_integer =
      rows.defined() && (rows.scalar_type() == at::kInt || rows.scalar_type() == at::kLong);
  require(is_integer && rows.dim() == 3, ErrorCode::usage, "token order",
          "expected int32 or int64 [batch or 1, heads or 1, seq_len]");
  TokenOrder out;
  out.kind_ = Kind::index;
  out.index_ = std::move(rows);
  return out;
}

at::Tensor TokenOrder::rows(const TokenLayout& layout, at::Device device) const {
  const int64_t seq_len = layout.seq_len();
  if (kind_ == Kind::index) {
    require(index_.size(2) == seq_len, ErrorCode::usage, "token order", "an index of ",
            index_.size(2), " tokens, but the layout is ", layout.describe());
    return index_.to(device, at::kLong);
  }
  if (kind_ == Kind::identity) return at::arange(seq_len, at::device(device)).view({1, 1, -1});
  return device_constant(describe() + " of " + layout.describe(), device,
                         [&] { return sorted_rows(layout); });
}

at::Tensor TokenOrder::sorted_rows(const TokenLayout& layout) const {
  std::vector<int64_t> rows;
  for (const Axes& axes : axes_) {
    int64_t first = 0;
    for (const Segment& segment : layout.segments()) {
      if (segment.kind != Segment::Kind::grid) {
        rows.resize(rows.size() + static_cast<size_t>(segment.capacity));
        std::iota(rows.end() - segment.capacity, rows.end(), first);
      } else if (kind_ == Kind::tiles) {
        append_tiles(segment.grid, axes, first, rows);
      } else {
        append_axes(segment.grid, axes, first, rows);
      }
      first += segment.capacity;
    }
  }
  const auto heads = static_cast<int64_t>(axes_.size());
  return at::tensor(rows, at::kLong).view({1, heads, layout.seq_len()});
}

std::string TokenOrder::describe() const {
  if (kind_ == Kind::identity) return "identity";
  if (kind_ == Kind::index) return "index";
  if (kind_ == Kind::tiles) return "tiles " + joined(tile(), 'x');
  std::string out = "axes";
  for (const Axes& axes : axes_) out += " " + joined(axes, '.');
  return out;
}

}  // namespace fovea
