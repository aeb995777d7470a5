#include "core/attention/pair_rules.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

constexpr int32_t kFar = 1 << 30;  // beyond all coordinates, rows and positions

int32_t narrow(int64_t value) {
  return static_cast<int32_t>(std::clamp<int64_t>(value, -kFar, kFar));
}

int64_t words_of(int64_t keys) { return (keys + 63) / 64; }

void set_all(uint64_t* words, int64_t keys) {
  std::fill_n(words, keys / 64, ~uint64_t{0});
  if (keys % 64 != 0) words[keys / 64] = (uint64_t{1} << keys % 64) - 1;
}

// Bits of the keys of which f(key) holds.
template <typename F>
void set_where(uint64_t* words, int64_t keys, const F& f) {
  for (int64_t begin = 0; begin < keys; begin += 64) {
    const int64_t count = std::min<int64_t>(64, keys - begin);
    uint64_t word = 0;
    for (int64_t i = 0; i < count; ++i) word |= static_cast<uint64_t>(f(begin + i)) << i;
    words[begin / 64] = word;
  }
}

// Both sides of a call.
struct PairSides {
  const TokenLayout& q_layout;
  const TokenLayout& kv_layout;
  at::Tensor q_coordinates, kv_coordinates;  // int64 [3, seq_len] by row
};

// The largest x with x² < limit, -1 where there is none.
int32_t half_width(int64_t limit) {
  if (limit <= 0) return -1;
  auto x = static_cast<int64_t>(std::sqrt(static_cast<double>(limit)));
  while (x > 0 && x * x >= limit) --x;
  while ((x + 1) * (x + 1) < limit) ++x;
  return narrow(x);
}

// Tokens of one residue follow each other, so that a dilated window is an interval too.
void add(const WindowPredicate& window, const PairSides& sides, std::vector<RuleValues>& rules) {
  const Segment& grid = grid_of_window(window, sides.q_layout, sides.kv_layout);
  for (size_t axis = 0; axis < 3; ++axis) {
    const AxisWindow& rule = window.axes[axis];
    if (rule.size == 0) continue;
    const int64_t length = grid.grid[axis], d = rule.dilation;
    const auto place = [&](int64_t i) { return narrow(i % d * length + i / d); };
    const auto inside = [&](const at::Tensor& coordinates, int64_t row) {
      const int64_t* values = coordinates.const_data_ptr<int64_t>();
      const int64_t at = values[static_cast<int64_t>(axis) * coordinates.size(1) + row];
      return std::clamp<int64_t>(at - grid.origin[axis], 0, length - 1);
    };
    RuleValues out;
    for (int64_t row = 0; row < sides.q_coordinates.size(1); ++row) {
      const auto [begin, end] = window_of(rule, inside(sides.q_coordinates, row), length);
      out.q[0].push_back(place(begin));
      out.q[1].push_back(place(end - 1) + 1);
    }
    for (int64_t row = 0; row < sides.kv_coordinates.size(1); ++row) {
      out.kv[0].push_back(place(inside(sides.kv_coordinates, row)));
    }
    out.kv[1] = out.kv[0];
    rules.push_back(std::move(out));
  }
}

void add(const DiscPredicate& disc, const PairSides& sides, std::vector<RuleValues>& rules) {
  RuleValues out;
  out.disc_limit = std::max<int64_t>(disc_limit(disc), 0);
  for (size_t i = 0; i < 2; ++i) {
    const auto take = [&](const at::Tensor& coordinates, std::vector<int32_t>& values) {
      const int64_t* from =
          coordinates.const_data_ptr<int64_t>() + static_cast<int64_t>(i + 1) * coordinates.size(1);
      for (int64_t row = 0; row < coordinates.size(1); ++row) values.push_back(narrow(from[row]));
    };
    take(sides.q_coordinates, out.q[i]);
    take(sides.kv_coordinates, out.kv[i]);
  }
  rules.push_back(std::move(out));
}

void add(const BandPredicate& band, const PairSides& sides, std::vector<RuleValues>& rules) {
  RuleValues out;
  out.in_order = band.in_order;
  const int64_t width = std::min<int64_t>(band.width, kFar);
  for (int64_t i = 0; i < sides.q_coordinates.size(1); ++i) {
    out.q[0].push_back(narrow(i - width));
    out.q[1].push_back(narrow(i + width + 1));
  }
  for (int64_t i = 0; i < sides.kv_coordinates.size(1); ++i) out.kv[0].push_back(narrow(i));
  out.kv[1] = out.kv[0];
  rules.push_back(std::move(out));
}

void add(const CausalPredicate& causal, const PairSides& sides, std::vector<RuleValues>& rules) {
  add(BandPredicate{.width = kFar, .in_order = causal.in_order}, sides, rules);
  // Of a query's place only those up to it.
  std::vector<int32_t>& ends = rules.back().q[1];
  for (size_t i = 0; i < ends.size(); ++i) ends[i] = narrow(static_cast<int64_t>(i) + 1);
}

void add(const StoredPredicate&, const PairSides&, std::vector<RuleValues>&) {}

// Values by position.
std::vector<int32_t> in_order_of(const std::vector<int32_t>& values, const OrderedSide& side) {
  std::vector<int32_t> out;
  for (const int64_t row : side.rows) out.push_back(values[static_cast<size_t>(row)]);
  return out;
}

}  // namespace

std::vector<RuleValues> rule_values(const std::vector<Predicate>& predicates,
                                    const TokenLayout& q_layout, const TokenLayout& kv_layout) {
  const PairSides sides{q_layout, kv_layout, grid_coordinates(q_layout, at::kCPU),
                        grid_coordinates(kv_layout, at::kCPU)};
  std::vector<RuleValues> out;
  for (const Predicate& predicate : predicates) {
    std::visit([&](const auto& rule) { add(rule, sides, out); }, predicate);
  }
  return out;
}

std::vector<uint8_t> outside_of_grids(const TokenLayout& layout) {
  std::vector<uint8_t> out;
  for (const Segment& segment : layout.segments()) {
    out.resize(out.size() + static_cast<size_t>(segment.capacity),
               segment.kind != Segment::Kind::grid);
  }
  return out;
}

PairRules::PairRules(const std::vector<Predicate>& predicates, const OrderedSide& q,
                     const OrderedSide& kv, std::vector<at::Tensor> stored)
    : q_{q, {}, {}, {}},
      kv_{kv, {}, {}, {}},
      rules_(rule_values(predicates, q.layout, kv.layout)),
      stored_(std::move(stored)) {
  for (Side* side : {&q_, &kv_}) {
    const std::vector<uint8_t> outside = outside_of_grids(side->tokens.layout);
    for (const int64_t row : side->tokens.rows) {
      side->outside.push_back(outside[static_cast<size_t>(row)]);
    }
  }
  for (RuleValues& rule : rules_) {
    if (rule.in_order) continue;
    for (size_t i = 0; i < 2; ++i) {
      rule.q[i] = in_order_of(rule.q[i], q);
      rule.kv[i] = in_order_of(rule.kv[i], kv);
    }
  }
  finish(q_, &RuleValues::q);
  finish(kv_, &RuleValues::kv);
}

void PairRules::finish(Side& side, std::array<std::vector<int32_t>, 2> RuleValues::*values) const {
  const std::vector<int64_t>& offsets = side.tokens.offsets;
  const auto blocks = static_cast<int64_t>(offsets.size()) - 1;
  side.outsiders.assign(static_cast<size_t>(blocks), 0);
  side.bounds.resize(rules_.size());
  constexpr int32_t kHigh = std::numeric_limits<int32_t>::max();
  for (auto& bounds : side.bounds) {
    bounds.assign(static_cast<size_t>(blocks), {{kHigh, kHigh}, {-kHigh, -kHigh}});
  }
  for (size_t block = 0; block < static_cast<size_t>(blocks); ++block) {
    for (auto at = static_cast<size_t>(offsets[block]);
         at < static_cast<size_t>(offsets[block + 1]); ++at) {
      side.outsiders[block] += side.outside[at];
      if (side.outside[at]) continue;
      for (size_t rule = 0; rule < rules_.size(); ++rule) {
        Bounds& bounds = side.bounds[rule][block];
        for (size_t i = 0; i < 2; ++i) {
          const int32_t value = (rules_[rule].*values)[i][at];
          bounds.least[i] = std::min(bounds.least[i], value);
          bounds.greatest[i] = std::max(bounds.greatest[i], value);
        }
      }
    }
  }
}

// Of pairs of grid tokens; both blocks have some.
PairRules::Seen PairRules::seen(const RuleValues& rule, const Bounds& q, const Bounds& kv) {
  if (rule.disc_limit < 0) {
    if (kv.greatest[0] < q.least[0] || kv.least[0] >= q.greatest[1]) return Seen::none;
    const bool all = kv.least[0] >= q.greatest[0] && kv.greatest[0] < q.least[1];
    return all ? Seen::all : Seen::some;
  }
  int64_t nearest = 0, farthest = 0;
  for (size_t i = 0; i < 2; ++i) {
    const int64_t after = int64_t{kv.least[i]} - q.greatest[i];
    const int64_t before = int64_t{q.least[i]} - kv.greatest[i];
    const int64_t near = std::max<int64_t>({after, before, 0});
    const int64_t far =
        std::max(kv.greatest[i] - int64_t{q.least[i]}, q.greatest[i] - int64_t{kv.least[i]});
    nearest += near * near;
    farthest += far * far;
  }
  if (nearest >= rule.disc_limit) return Seen::none;
  return farthest < rule.disc_limit ? Seen::all : Seen::some;
}

PairRules::Row::Row(const PairRules& rules, int64_t q_block)
    : rules_(rules), block_(q_block), cases_(rules.rules_.size()), masks_(rules.rules_.size()) {
  const OrderedSide& q = rules_.q_.tokens;
  const auto first = static_cast<size_t>(q.offsets[static_cast<size_t>(q_block)]);
  const auto rows = static_cast<size_t>(q.size(q_block));
  for (size_t number = 0; number < cases_.size(); ++number) {
    const RuleValues& rule = rules_.rules_[number];
    Cases& cases = cases_[number];
    const auto value = [&](size_t row) -> std::array<int32_t, 2> {
      return {rule.q[0][first + row], rule.q[1][first + row]};
    };
    std::vector<size_t> sorted(rows);
    std::iota(sorted.begin(), sorted.end(), size_t{0});
    std::sort(sorted.begin(), sorted.end(),
              [&](size_t a, size_t b) { return value(a) < value(b); });
    cases.of_row.resize(rows);
    for (const size_t row : sorted) {
      if (cases.values.empty() || cases.values.back() != value(row)) {
        cases.values.push_back(value(row));
      }
      cases.of_row[row] = cases.values.size() - 1;
    }
  }
}

// What is known without a look at single pairs; stored predicates always want one.
PairRules::Seen PairRules::Row::from_bounds(int64_t kv_block) const {
  const auto i = static_cast<size_t>(block_), j = static_cast<size_t>(kv_block);
  const int64_t rows = rules_.q_.tokens.size(block_), keys = rules_.kv_.tokens.size(kv_block);
  if (rows == 0 || keys == 0) return Seen::none;
  const int64_t q_outside = rules_.q_.outsiders[i], kv_outside = rules_.kv_.outsiders[j];
  Seen all = rules_.stored_.empty() ? Seen::all : Seen::some;
  if (q_outside == rows || kv_outside == keys) return all;
  for (size_t number = 0; number < rules_.rules_.size(); ++number) {
    const Seen own =
        seen(rules_.rules_[number], rules_.q_.bounds[number][i], rules_.kv_.bounds[number][j]);
    if (own == Seen::none && q_outside == 0 && kv_outside == 0) return Seen::none;
    if (own != Seen::all) all = Seen::some;
  }
  return all;
}

void PairRules::Row::make_masks(int64_t kv_block, int64_t words) {
  const OrderedSide& kv = rules_.kv_.tokens;
  const auto first = static_cast<size_t>(kv.offsets[static_cast<size_t>(kv_block)]);
  const int64_t keys = kv.size(kv_block);
  for (size_t number = 0; number < cases_.size(); ++number) {
    const RuleValues& rule = rules_.rules_[number];
    const Cases& cases = cases_[number];
    masks_[number].resize(cases.values.size() * static_cast<size_t>(words));
    const int32_t* value = rule.kv[0].data() + first;
    for (size_t i = 0; i < cases.values.size(); ++i) {
      const std::array<int32_t, 2> own = cases.values[i];
      uint64_t* mask = masks_[number].data() + i * static_cast<size_t>(words);
      if (rule.disc_limit < 0) {
        // One comparison for both ends.
        const auto width = static_cast<uint32_t>(std::max(own[1] - own[0], 0));
        set_where(mask, keys,
                  [&](int64_t key) { return static_cast<uint32_t>(value[key] - own[0]) < width; });
        continue;
      }
      if (i == 0 || cases.values[i - 1][0] != own[0]) {  // another height: another line of discs
        first_.resize(static_cast<size_t>(keys));
        width_.resize(static_cast<size_t>(keys));
        const int32_t* across = rule.kv[1].data() + first;
        for (int64_t key = 0; key < keys; ++key) {
          const int64_t dy = int64_t{value[key]} - own[0];
          const int32_t half = half_width(rule.disc_limit - dy * dy);
          first_[static_cast<size_t>(key)] = across[key] - half;
          width_[static_cast<size_t>(key)] = 2 * half + 1;
        }
      }
      set_where(mask, keys, [&](int64_t key) {
        const auto at = static_cast<size_t>(key);
        return own[1] >= first_[at] && own[1] - first_[at] < width_[at];
      });
    }
  }
}

PairRules::Seen PairRules::Row::take(int64_t kv_block, std::vector<uint64_t>& bits) {
  const Seen known = from_bounds(kv_block);
  if (known != Seen::some) return known;
  const OrderedSide &q = rules_.q_.tokens, &kv = rules_.kv_.tokens;
  const auto q_first = static_cast<size_t>(q.offsets[static_cast<size_t>(block_)]);
  const auto kv_first = static_cast<size_t>(kv.offsets[static_cast<size_t>(kv_block)]);
  const int64_t rows = q.size(block_), keys = kv.size(kv_block), words = words_of(keys);
  make_masks(kv_block, words);
  const size_t begin = bits.size();
  bits.resize(begin + static_cast<size_t>(rows * words));
  std::vector<uint64_t> others(static_cast<size_t>(words), 0);  // keys outside of grids
  if (rules_.kv_.outsiders[static_cast<size_t>(kv_block)] > 0) {
    const uint8_t* outside = rules_.kv_.outside.data() + kv_first;
    set_where(others.data(), keys, [&](int64_t key) { return outside[key] != 0; });
  }
  int64_t count = 0;
  for (size_t row = 0; row < static_cast<size_t>(rows); ++row) {
    uint64_t* own = bits.data() + begin + row * static_cast<size_t>(words);
    set_all(own, keys);
    for (size_t rule = 0; rule < cases_.size() && !rules_.q_.outside[q_first + row]; ++rule) {
      const uint64_t* mask =
          masks_[rule].data() + cases_[rule].of_row[row] * static_cast<size_t>(words);
      for (size_t w = 0; w < static_cast<size_t>(words); ++w) own[w] &= mask[w] | others[w];
    }
    for (const at::Tensor& stored : rules_.stored_) {
      const bool* seen = stored.const_data_ptr<bool>() + q.rows[q_first + row] * stored.stride(0);
      const int64_t stride = stored.stride(1);
      std::vector<uint64_t> mask(static_cast<size_t>(words));
      set_where(mask.data(), keys, [&](int64_t key) {
        return seen[kv.rows[kv_first + static_cast<size_t>(key)] * stride];
      });
      for (size_t w = 0; w < static_cast<size_t>(words); ++w) own[w] &= mask[w];
    }
    for (size_t w = 0; w < static_cast<size_t>(words); ++w) count += std::popcount(own[w]);
  }
  if (count > 0 && count < rows * keys) return Seen::some;
  bits.resize(begin);
  return count == 0 ? Seen::none : Seen::all;
}

}  // namespace fovea
