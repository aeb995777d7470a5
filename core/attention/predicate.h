#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/token_layout.h"

namespace fovea {

/// The window that a token sees along one axis of the grid, as one rule for neighborhood attention
/// of any stride (Hassani et al., "Neighborhood Attention Transformer", 2023, and "Generalized
/// Neighborhood Attention", 2025).
///
/// With `dilation` d, token i is number i div d of the tokens with its residue, and sees only
/// those; the rest of the rule holds among them, L of them. Groups of `stride` tokens share the
/// window of one leader: their middle one (of two the later), with `causal` their last one. A
/// window is `size` tokens: size div 2 before the leader and the rest from it on. At the borders it
/// is moved inwards, so that it keeps its size; with `causal` it ends with the token itself and is
/// cut off at the beginning instead.
struct AxisWindow {
  int64_t size = 0;  ///< tokens; 0: the whole axis
  int64_t stride = 1;
  int64_t dilation = 1;
  bool causal = false;

  /// Whether a window fits: 1 <= stride <= size, dilation >= 1, size · dilation <= length.
  bool fits(int64_t length) const;
  bool operator==(const AxisWindow&) const = default;
};

/// A window on each axis: frames, height, width.
struct WindowPredicate {
  std::array<AxisWindow, 3> axes;
  bool operator==(const WindowPredicate&) const = default;
};

/// Tokens whose height and width are less than a radius apart, over all frames (CLEAR, Liu et al.,
/// 2024, section 3.2): dy² + dx² < radius².
struct DiscPredicate {
  double radius = 0;
  bool operator==(const DiscPredicate&) const = default;
};

/// Rows, or positions in the plan's orders, at most `width` apart.
struct BandPredicate {
  int64_t width = 0;
  bool in_order = false;
  bool operator==(const BandPredicate&) const = default;
};

/// Keys that do not come after the query, by row or by position in the plan's orders.
struct CausalPredicate {
  bool in_order = false;
  bool operator==(const CausalPredicate&) const = default;
};

/// Stored: bool [batch or 1, heads or 1, q_len, kv_len] by row.
struct StoredPredicate {
  at::Tensor visible;
  /// Whether both are the same tensor.
  bool operator==(const StoredPredicate& other) const { return visible.is_same(other.visible); }
};

/// Which pairs of tokens of two grids see each other; pairs with a token of another segment always
/// do, but for stored ones, which say it of all.
using Predicate =
    std::variant<WindowPredicate, DiscPredicate, BandPredicate, CausalPredicate, StoredPredicate>;

/// Where the tokens of a call are, for predicates.
struct PredicateSpace {
  const TokenLayout& q_layout;
  const TokenLayout& kv_layout;
  at::Tensor q_position;   ///< int64 [batch or 1, heads or 1, rows]: position in order of each row
  at::Tensor kv_position;  ///< the same for keys, all of them
  /// int64 [rows]: only these rows of queries are asked about; undefined: all of them.
  at::Tensor q_rows = at::Tensor();
};

/// bool, broadcasts to [batch, heads, rows, kv_len]
///
/// throws  Error usage when a window does not fit the grid, or the grids of a window differ
at::Tensor visible_pairs(const Predicate& predicate, const PredicateSpace& space);

/// int64 [3, seq_len]: frame, height and width of each row, the grid's origin included; -1 outside
/// of grids.
at::Tensor grid_coordinates(const TokenLayout& layout, at::Device device);

/// The grid of queries and keys that a window is on.
///
/// throws  Error usage when the window does not fit it, or the two sides' grids differ
const Segment& grid_of_window(const WindowPredicate& window, const TokenLayout& q_layout,
                              const TokenLayout& kv_layout);

/// dy² + dx² of the tokens of a disc is below this whole number.
int64_t disc_limit(const DiscPredicate& disc);

/// The first key and the one behind the last that token `i` of `length` sees; with a dilation the
/// tokens between that have another residue are not seen.
std::array<int64_t, 2> window_of(const AxisWindow& window, int64_t i, int64_t length);

}  // namespace fovea
