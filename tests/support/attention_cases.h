#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/call.h"

// Calls that planners are tested with, and attention by its formula: one pair of tokens after the
// other, in fp64.

namespace fovea::test {

/// Ragged grids alone, with text in front or behind, with padding, of one frame and of one token,
/// and a sequence that ends in padding.
inline std::vector<TokenLayout> awkward_layouts() {
  const at::Tensor valid = at::tensor({11, 3}, at::kLong);
  TokenLayout before = TokenLayout::text(20);
  before.append(TokenLayout::grid(2, 5, 7));
  TokenLayout behind = TokenLayout::grid(3, 4, 9);
  behind.append(TokenLayout::text(23, valid));
  TokenLayout both = TokenLayout::text(18, valid);
  both.append(TokenLayout::grid(1, 6, 11)).append(TokenLayout::extra(2));
  return {TokenLayout::grid(1, 1, 1),
          TokenLayout::grid(3, 5, 7),
          before,
          behind,
          both,
          TokenLayout::sequence(41, at::tensor({37, 20}, at::kLong))};
}

/// Two items, four heads that share the keys of two, 8 channels, values of 6, fp64.
inline AttentionCall awkward_call(const TokenLayout& layout) {
  const int64_t length = layout.seq_len();
  AttentionCall call;
  call.q_layout = call.kv_layout = layout;
  call.q = 2 * at::randn({2, 4, length, 8}, at::kDouble);
  call.k = 2 * at::randn({2, 2, length, 8}, at::kDouble);
  call.v = at::randn({2, 2, length, 6}, at::kDouble);
  return call;
}

/// Runs f(item, head, head of keys) for all.
inline void for_each_head(const AttentionCall& call,
                          const std::function<void(int64_t, int64_t, int64_t)>& f) {
  for (int64_t b = 0; b < call.q.size(0); ++b) {
    for (int64_t h = 0; h < call.q.size(1); ++h) f(b, h, h * call.k.size(1) / call.q.size(1));
  }
}

/// Whether a token of the side is no padding.
inline bool is_valid(const TokenLayout& layout, int64_t item, int64_t row) {
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    const int64_t capacity = layout.segments()[i].capacity;
    const at::Tensor& valid = layout.valid_len()[i];
    if (row < capacity) {
      return !valid.defined() || row < valid.const_data_ptr<int64_t>()[item];
    }
    row -= capacity;
  }
  return false;
}

/// Whether a token belongs to a grid.
inline bool in_grid(const TokenLayout& layout, int64_t row) {
  for (const Segment& segment : layout.segments()) {
    if (row < segment.capacity) return segment.kind == Segment::Kind::grid;
    row -= segment.capacity;
  }
  return false;
}

/// Rows of each block of a side: `size` of them, cut anew in each segment.
inline std::vector<std::vector<int64_t>> blocks_of(const TokenLayout& layout, int64_t size) {
  std::vector<std::vector<int64_t>> out;
  int64_t first = 0;
  for (const Segment& segment : layout.segments()) {
    for (int64_t at = 0; at < segment.capacity; ++at) {
      if (at % size == 0) out.emplace_back();
      out.back().push_back(first + at);
    }
    first += segment.capacity;
  }
  return out;
}

/// The rows of a block that are no padding.
inline std::vector<int64_t> valid_rows(const TokenLayout& layout, int64_t item,
                                       const std::vector<int64_t>& rows) {
  std::vector<int64_t> out;
  for (const int64_t row : rows) {
    if (is_valid(layout, item, row)) out.push_back(row);
  }
  return out;
}

/// Mean of some rows of x [seq_len, dim]; 0 of none.
inline at::Tensor mean_of(const at::Tensor& x, const std::vector<int64_t>& rows) {
  at::Tensor sum = at::zeros({x.size(1)}, x.options());
  for (const int64_t row : rows) sum += x[row];
  return rows.empty() ? sum : sum / static_cast<double>(rows.size());
}

/// softmax over the valid keys that a row sees [batch, heads, q_len, value_dim], 0 without any.
///
/// pairs  bool, [batch, heads, q_len, kv_len]
inline at::Tensor direct_attention(const AttentionCall& call, const at::Tensor& pairs) {
  at::Tensor out =
      at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), call.v.size(3)}, call.q.options());
  const double scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  for_each_head(call, [&](int64_t b, int64_t h, int64_t g) {
    const at::Tensor logits = at::matmul(call.q[b][h], call.k[b][g].t()) * scale;
    const at::Tensor values = call.v[b][g], seen = pairs[b][h], to = out[b][h];
    const auto s = logits.accessor<double, 2>(), v = values.accessor<double, 2>();
    const auto sees = seen.accessor<bool, 2>();
    auto o = to.accessor<double, 2>();
    for (int64_t i = 0; i < logits.size(0); ++i) {
      double total = 0;
      for (int64_t j = 0; j < logits.size(1); ++j) {
        if (!sees[i][j] || !is_valid(call.kv_layout, b, j)) continue;
        total += std::exp(s[i][j]);
        for (int64_t c = 0; c < v.size(1); ++c) o[i][c] += std::exp(s[i][j]) * v[j][c];
      }
      for (int64_t c = 0; c < v.size(1) && total > 0; ++c) o[i][c] /= total;
    }
  });
  return out;
}

/// bool [batch, heads, q_len, kv_len] for blocks of rows: `kept[item][head]` says of each pair of
/// blocks whether it is seen; tokens outside of grids see and are seen by all.
inline at::Tensor pairs_of_blocks(const AttentionCall& call,
                                  const std::vector<std::vector<int64_t>>& q_blocks,
                                  const std::vector<std::vector<int64_t>>& kv_blocks,
                                  const at::Tensor& kept) {
  at::Tensor pairs =
      at::zeros({call.q.size(0), call.q.size(1), call.q.size(2), call.k.size(2)}, at::kBool);
  for_each_head(call, [&](int64_t b, int64_t h, int64_t) {
    for (size_t i = 0; i < q_blocks.size(); ++i) {
      for (size_t j = 0; j < kv_blocks.size(); ++j) {
        const bool grid =
            in_grid(call.q_layout, q_blocks[i][0]) && in_grid(call.kv_layout, kv_blocks[j][0]);
        const bool seen =
            !grid || kept[b][h][static_cast<int64_t>(i)][static_cast<int64_t>(j)].item<bool>();
        if (!seen) continue;
        pairs[b][h]
            .slice(0, q_blocks[i].front(), q_blocks[i].back() + 1)
            .slice(1, kv_blocks[j].front(), kv_blocks[j].back() + 1)
            .fill_(true);
      }
    }
  });
  return pairs;
}

}  // namespace fovea::test
