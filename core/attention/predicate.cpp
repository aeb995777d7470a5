#include "core/attention/predicate.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

constexpr const char* kAxes[] = {"frames", "height", "width"};

// Those of the queries that are asked about, int64 [3, rows].
at::Tensor q_coordinates(const PredicateSpace& space, at::Device device) {
  const at::Tensor all = grid_coordinates(space.q_layout, device);
  return space.q_rows.defined() ? all.index_select(1, space.q_rows) : all;
}

const Segment& only_grid(const TokenLayout& layout) {
  const Segment* found = nullptr;
  for (const Segment& segment : layout.segments()) {
    if (segment.kind != Segment::Kind::grid) continue;
    require(found == nullptr, ErrorCode::usage, "window", "more than one grid in ",
            layout.describe());
    found = &segment;
  }
  require(found != nullptr, ErrorCode::usage, "window", "no grid in ", layout.describe());
  return *found;
}

// bool [length, length] for one axis.
at::Tensor axis_pairs(const AxisWindow& window, int64_t length) {
  at::Tensor out = at::zeros({length, length}, at::kBool);
  for (int64_t i = 0; i < length; ++i) {
    const auto [begin, end] = window_of(window, i, length);
    for (int64_t j = begin; j < end; j += window.dilation) out[i][j].fill_(true);
  }
  return out;
}

// Coordinates within the grid, for looking tables up; other segments get 0.
at::Tensor local(const at::Tensor& coordinate, int64_t origin) {
  return (coordinate - origin).clamp_min(0);
}

at::Tensor pairs(const WindowPredicate& window, const PredicateSpace& space, at::Device device) {
  const Segment& grid = grid_of_window(window, space.q_layout, space.kv_layout);
  const at::Tensor from = q_coordinates(space, device);
  const at::Tensor to = grid_coordinates(space.kv_layout, device);
  at::Tensor out = at::ones({1, 1}, at::device(device).dtype(at::kBool));
  for (size_t axis = 0; axis < 3; ++axis) {
    const AxisWindow& rule = window.axes[axis];
    if (rule.size == 0) continue;
    const auto a = static_cast<int64_t>(axis);
    const at::Tensor table = axis_pairs(rule, grid.grid[axis]).to(device);
    out = out.logical_and(table.index_select(0, local(from[a], grid.origin[axis]))
                              .index_select(1, local(to[a], grid.origin[axis])));
  }
  return out;
}

at::Tensor pairs(const DiscPredicate& disc, const PredicateSpace& space, at::Device device) {
  const at::Tensor from = q_coordinates(space, device);
  const at::Tensor to = grid_coordinates(space.kv_layout, device);
  at::Tensor squares = at::zeros({1, 1}, at::device(device).dtype(at::kLong));
  for (const int64_t axis : {1, 2}) {
    squares = squares + (from[axis].unsqueeze(1) - to[axis].unsqueeze(0)).square();
  }
  return squares < disc_limit(disc);
}

// Distances query minus key: by row, or by position in the orders.
at::Tensor distances(const PredicateSpace& space, bool in_order, at::Device device) {
  if (in_order) return space.q_position.unsqueeze(-1) - space.kv_position.unsqueeze(-2);
  const auto options = at::device(device).dtype(at::kLong);
  const at::Tensor rows =
      space.q_rows.defined() ? space.q_rows : at::arange(space.q_layout.seq_len(), options);
  return rows.unsqueeze(1) - at::arange(space.kv_layout.seq_len(), options).unsqueeze(0);
}

at::Tensor pairs(const BandPredicate& band, const PredicateSpace& space, at::Device device) {
  return distances(space, band.in_order, device).abs() <= band.width;
}

at::Tensor pairs(const CausalPredicate& causal, const PredicateSpace& space, at::Device device) {
  return distances(space, causal.in_order, device) >= 0;
}

}  // namespace

at::Tensor grid_coordinates(const TokenLayout& layout, at::Device device) {
  std::vector<at::Tensor> parts;
  const auto options = at::device(device).dtype(at::kLong);
  for (const Segment& segment : layout.segments()) {
    if (segment.kind != Segment::Kind::grid) {
      parts.push_back(at::full({3, segment.capacity}, -1, options));
      continue;
    }
    const auto& [frames, height, width] = segment.grid;
    const at::Tensor row = at::arange(segment.capacity, options);
    const at::Tensor line = row.floor_divide(width);
    parts.push_back(at::stack({line.floor_divide(height) + segment.origin[0],
                               line.remainder(height) + segment.origin[1],
                               row.remainder(width) + segment.origin[2]}));
  }
  return parts.empty() ? at::empty({3, 0}, options) : at::cat(parts, 1);
}

const Segment& grid_of_window(const WindowPredicate& window, const TokenLayout& q_layout,
                              const TokenLayout& kv_layout) {
  const Segment &q = only_grid(q_layout), &kv = only_grid(kv_layout);
  require(q.grid == kv.grid && q.origin == kv.origin, ErrorCode::usage, "window",
          "queries and keys of one grid expected, got ", q_layout.describe(), " and ",
          kv_layout.describe());
  for (size_t axis = 0; axis < 3; ++axis) {
    const AxisWindow& rule = window.axes[axis];
    const int64_t length = q.grid[axis];
    require(rule.size == 0 || rule.fits(length), ErrorCode::usage, "window", "axis ", kAxes[axis],
            ": size ", rule.size, ", stride ", rule.stride, ", dilation ", rule.dilation,
            " do not fit ", length, " tokens");
  }
  return q;
}

int64_t disc_limit(const DiscPredicate& disc) {
  // Squares of whole numbers are below r² where they are below the next whole number; a grid's are
  // below 2^62.
  return static_cast<int64_t>(std::ceil(std::min(disc.radius * disc.radius, 4e18)));
}

bool AxisWindow::fits(int64_t length) const {
  return size >= 1 && stride >= 1 && stride <= size && dilation >= 1 && size <= length / dilation;
}

std::array<int64_t, 2> window_of(const AxisWindow& window, int64_t i, int64_t length) {
  const int64_t d = window.dilation, residue = i % d, p = i / d;
  const int64_t count = length / d + (residue < length % d ? 1 : 0);
  const int64_t group = p / window.stride * window.stride;
  int64_t begin, end;
  if (window.causal) {
    const int64_t leader = std::min(group + window.stride - 1, count - 1);
    begin = std::max<int64_t>(leader - (window.size - 1), 0);
    end = p + 1;
  } else {
    const int64_t leader = std::min(group + window.stride / 2, count - 1);
    const int64_t after = window.size / 2 + window.size % 2 - 1;
    begin = std::max<int64_t>(leader - window.size / 2, 0);
    begin -= std::max<int64_t>(leader + after + 1 - count, 0);
    end = begin + window.size;
  }
  return {residue + begin * d, residue + (end - 1) * d + 1};
}

at::Tensor visible_pairs(const Predicate& predicate, const PredicateSpace& space) {
  if (const auto* stored = std::get_if<StoredPredicate>(&predicate)) {
    const at::Tensor& visible = stored->visible;
    const bool some = space.q_rows.defined() && visible.size(2) == space.q_layout.seq_len();
    return some ? visible.index_select(2, space.q_rows) : visible;
  }
  const at::Device device = space.q_position.device();
  const at::Tensor inside = std::visit(
      [&](const auto& rule) -> at::Tensor {
        if constexpr (std::is_same_v<std::decay_t<decltype(rule)>, StoredPredicate>) {
          return rule.visible;
        } else {
          return pairs(rule, space, device);
        }
      },
      predicate);
  const at::Tensor q_outside = q_coordinates(space, device)[0] < 0;
  const at::Tensor kv_outside = grid_coordinates(space.kv_layout, device)[0] < 0;
  return inside.logical_or(q_outside.unsqueeze(1)).logical_or(kv_outside.unsqueeze(0));
}

}  // namespace fovea
