#include "core/attention/executors/cuda_lists.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/block_pool.h"
#include "core/attention/device_constants.h"
#include "core/attention/lower.h"
#include "core/attention/pair_rules.h"
#include "core/check.h"
#include "core/ops/device_kernel.h"
#include "kernels/attention/pair_masks.h"

namespace fovea {
namespace {

constexpr int64_t kMostMasks = (int64_t{1} << 24) - 2;  // as spans number them
constexpr int64_t kUnit = 64;                           // of tiles

static_assert(sizeof(kernels::QueryTile) == 4 * sizeof(int32_t));
static_assert(sizeof(kernels::KeySpan) == 2 * sizeof(int32_t));
static_assert(sizeof(kernels::PackedSpan) == 2 * sizeof(int32_t));

at::TensorOptions integers(at::Device device) { return at::device(device).dtype(at::kInt); }

// A tensor [batch or 1, heads or 1, ...] for maps: of one map where all share it.
at::Tensor of_maps(const at::Tensor& x, const DeviceLists& lists) {
  if (x.size(0) == 1 && x.size(1) == 1) return x.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = lists.map_items, sizes[1] = lists.map_heads;
  return x.expand(sizes).contiguous();
}

int64_t maps_of(const at::Tensor& x) { return x.size(0) * x.size(1); }

// int32 [batch or 1, heads or 1, blocks + 1] for heads of queries
at::Tensor offsets_of(const BlockAxis& axis, const ListsOf& of) {
  return per_head(int_offsets(axis, of.call.q.device()), of.call.q.size(1));
}

// Pieces of at most `most` positions that blocks of `len` positions are cut into, at most.
int64_t most_pieces(const BlockAxis& axis, int64_t len, int64_t most) {
  const std::vector<int64_t>& offsets = axis.host_offsets();
  if (offsets.empty()) return kernels::most_tiles(len, axis.num_blocks(), most);
  int64_t count = 0;
  for (size_t i = 1; i < offsets.size(); ++i) {
    count += (offsets[i] - offsets[i - 1] + most - 1) / most;
  }
  return count;
}

// A size as which blocks are cut well: that of the largest in whole units; a large one where
// blocks are so large that their ends do not count.
int64_t usual_size(const BlockAxis& axis, int64_t len) {
  if (axis.host_offsets().empty()) {
    return len / std::max<int64_t>(axis.num_blocks(), 1) >= 4 * kUnit ? 2 * kUnit : kUnit;
  }
  const int64_t size = (axis.max_size() + kUnit - 1) / kUnit * kUnit;
  return size >= 8 * kUnit ? 2 * kUnit : size;
}

// Whether the host knows that blocks that are not empty begin at multiples of a unit.
bool begin_at_multiples(const BlockAxis& axis, int64_t unit) {
  const std::vector<int64_t>& offsets = axis.host_offsets();
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] > offsets[i - 1] && offsets[i - 1] % unit != 0) return false;
  }
  return !offsets.empty();
}

void set_maps(const ListsOf& of, DeviceLists& lists) {
  const auto include = [&](const at::Tensor& x) {
    if (!x.defined()) return;
    if (x.size(0) > 1) lists.map_items = of.call.q.size(0);
    if (x.size(1) > 1) lists.map_heads = of.call.q.size(1);
  };
  for (const at::Tensor& x : {of.selection.classes, of.kv_valid, of.q_blocks.device_offsets(),
                              of.kv_blocks.device_offsets()}) {
    include(x);
  }
  if (of.selection.predicates.empty()) return;
  include(of.q_rows);
  include(of.kv_rows);
  for (const Predicate& predicate : of.selection.predicates) {
    if (const auto* stored = std::get_if<StoredPredicate>(&predicate)) include(stored->visible);
  }
}

// int32 [2 * rules + 2, seq_len] by row, see `PairMasksArgs`.
at::Tensor values_by_row(const std::vector<RuleValues>& rules, const TokenLayout& layout,
                         std::array<std::vector<int32_t>, 2> RuleValues::*side) {
  std::vector<at::Tensor> parts;
  for (const RuleValues& rule : rules) {
    for (const std::vector<int32_t>& values : rule.*side) {
      parts.push_back(at::tensor(values, at::kInt));
    }
  }
  std::vector<int32_t> outside;
  for (const uint8_t is_outside : outside_of_grids(layout)) outside.push_back(is_outside);
  parts.push_back(at::tensor(outside, at::kInt));
  parts.push_back(at::arange(layout.seq_len(), at::kInt));
  return at::stack(parts);
}

// The same by position, int32 [maps or 1, values, len].
at::Tensor values_by_position(const std::vector<RuleValues>& rules, const at::Tensor& by_row,
                              const at::Tensor& rows, const DeviceLists& lists) {
  if (!rows.defined()) return by_row.unsqueeze(0).contiguous();
  // Nobody has looked at an index's rows yet.
  const at::Tensor known = rows.clamp(0, std::max<int64_t>(by_row.size(1) - 1, 0));
  const at::Tensor own = of_maps(known, lists).flatten(0, 1).to(at::kLong);  // [maps or 1, len]
  at::Tensor out = by_row.index_select(1, own.flatten())
                       .view({by_row.size(0), own.size(0), own.size(1)})
                       .transpose(0, 1)
                       .contiguous();
  for (size_t i = 0; i < rules.size(); ++i) {
    if (!rules[i].in_order) continue;
    const auto at = static_cast<int64_t>(2 * i);
    out.slice(1, at, at + 2).copy_(by_row.slice(0, at, at + 2).unsqueeze(0));
  }
  return out;
}

void set_stored(const std::vector<Predicate>& predicates, kernels::PairMasksArgs& args) {
  for (const Predicate& predicate : predicates) {
    const auto* rule = std::get_if<StoredPredicate>(&predicate);
    if (rule == nullptr) continue;
    const at::Tensor& x = rule->visible;
    const auto stride = [&](int64_t axis) { return x.size(axis) == 1 ? 0 : x.stride(axis); };
    args.stored[args.num_stored++] = {reinterpret_cast<const uint8_t*>(x.const_data_ptr<bool>()),
                                      stride(0), stride(1), stride(2), stride(3)};
  }
}

// What lists are made of beside the class map.
struct Cut {
  bool of_columns = false;
  at::Tensor tiled, listed;  // offsets of the blocks that tiles and spans are cut from
  int64_t tiled_len = 0, listed_len = 0;
  int64_t tiles = 0, capacity = 0;              // most of a map, most spans of a row
  uint8_t keep = block_class::exact;            // the class that is listed
  std::vector<kernels::SummaryKeys> summaries;  // and those behind it
};

DeviceLists cut_lists(const ListsOf& of, kernels::AttentionTile tile, const Cut& cut,
                      const at::Tensor& fault) {
  const at::Device device = of.call.q.device();
  DeviceLists out;
  out.tile = tile, out.of_columns = cut.of_columns;
  set_maps(of, out);
  const int64_t maps = out.map_items * out.map_heads;
  const at::Tensor tiled = of_maps(cut.tiled, out), listed = of_maps(cut.listed, out);
  kernels::TileListsArgs args;
  args.transposed = cut.of_columns, args.keep = cut.keep;
  args.last_class = static_cast<uint8_t>(block_class::exact + of.selection.summaries.size());
  at::Tensor classes, valid;
  if (of.selection.classes.defined()) {
    classes = of.selection.classes.expand({out.map_items, out.map_heads, -1, -1}).contiguous();
    args.classes = classes.const_data_ptr<uint8_t>();
  }
  if (of.kv_valid.defined() && cut.keep == block_class::exact) {
    valid = of_maps(of.kv_valid, out);
    args.kv_valid = valid.const_data_ptr<int32_t>();
    args.valid_maps = maps_of(valid);
  }
  for (const kernels::SummaryKeys& keys : cut.summaries) {
    args.summaries[args.num_summaries++] = keys;
  }
  args.q_offsets = tiled.const_data_ptr<int32_t>();
  args.kv_offsets = listed.const_data_ptr<int32_t>();
  args.maps = maps, args.q_maps = maps_of(tiled), args.kv_maps = maps_of(listed);
  args.num_q_blocks = tiled.size(2) - 1, args.num_kv_blocks = listed.size(2) - 1;
  args.q_len = static_cast<int32_t>(cut.tiled_len);
  args.kv_len = static_cast<int32_t>(cut.listed_len);
  args.tile_queries = tile.queries, args.span_keys = tile.keys;
  args.tiles_per_map = cut.tiles, args.capacity = cut.capacity;
  out.tiles = at::empty({maps, cut.tiles, 4}, integers(device));
  out.counts = at::empty({maps, args.num_q_blocks}, integers(device));
  out.spans = at::empty({maps, args.num_q_blocks, cut.capacity, 2}, integers(device));
  args.tiles = static_cast<kernels::QueryTile*>(out.tiles.mutable_data_ptr());
  args.counts = out.counts.mutable_data_ptr<int32_t>();
  if (tile.is_packed) {
    args.packed = static_cast<kernels::PackedSpan*>(out.spans.mutable_data_ptr());
  } else {
    args.spans = static_cast<kernels::KeySpan*>(out.spans.mutable_data_ptr());
  }
  args.fault = fault.mutable_data_ptr<int32_t>();
  ops::run_on("tile_lists", device, args, &kernels::tile_lists_cpu,
              FOVEA_CUDA_LAUNCHER(tile_lists_cuda));
  return out;
}

// Tiles of other keys behind those that are there; all have the same queries.
void append(DeviceLists& to, const DeviceLists& other) {
  other.tiles.select(2, 2).add_(to.counts.size(1));  // their rows
  to.tiles = at::cat({to.tiles, other.tiles}, 1);
  to.counts = at::cat({to.counts, other.counts}, 1);
  to.spans = at::cat({to.spans, other.spans}, 1);
}

}  // namespace

kernels::TileLists DeviceLists::view() const {
  kernels::TileLists out;
  out.tiles = static_cast<const kernels::QueryTile*>(tiles.const_data_ptr());
  out.counts = counts.const_data_ptr<int32_t>();
  if (tile.is_packed) {
    out.packed = static_cast<const kernels::PackedSpan*>(spans.const_data_ptr());
  } else {
    out.spans = static_cast<const kernels::KeySpan*>(spans.const_data_ptr());
  }
  out.tiles_per_map = tiles.size(1);
  out.rows = spans.size(1);
  out.capacity = spans.size(2);
  out.batch_stride = map_items > 1 ? map_heads : 0;
  out.head_stride = map_heads > 1 ? 1 : 0;
  if (masks.defined()) {
    out.masks = reinterpret_cast<const uint32_t*>(masks.const_data_ptr<int32_t>());
  }
  return out;
}

kernels::AttentionTile tile_of(const ListsOf& of,
                               kernels::AttentionTile (*tile)(int64_t, int64_t)) {
  // Pooled keys come in short spans, or tiles.
  const bool is_pooled = !of.selection.summaries.empty();
  return tile(usual_size(of.q_blocks, of.call.q.size(2)),
              is_pooled ? kUnit : usual_size(of.kv_blocks, of.kv_len));
}

bool are_better_packed(const ListsOf& of, kernels::AttentionTile tile) {
  if (!of.selection.predicates.empty() || !of.selection.summaries.empty()) return false;
  if (of.call.q.size(2) <= kUnit * of.q_blocks.num_blocks()) return false;
  if (of.kv_blocks.host_offsets().empty()) return true;
  // A twentieth of the steps empty: some blocks at the ends of segments do not count.
  const int64_t loaded = most_pieces(of.kv_blocks, of.kv_len, tile.keys) * tile.keys;
  return 20 * (loaded - of.kv_len) > of.kv_len;
}

std::vector<kernels::SummaryKeys> summary_keys(const Selection& selection, int64_t keys) {
  const std::vector<int64_t> places = summary_places(selection, keys);
  std::vector<kernels::SummaryKeys> out;
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    const int64_t pool = selection.summaries[i].pool;
    out.push_back({static_cast<int32_t>(places[i]),
                   static_cast<int32_t>(pieces_per_block(selection.kv_blocks, pool)),
                   static_cast<int32_t>(std::min<int64_t>(pool, 1 << 30))});
  }
  return out;
}

DeviceLists make_lists(const ListsOf& of, kernels::AttentionTile tile, const at::Tensor& fault) {
  Cut cut;
  cut.tiled = offsets_of(of.q_blocks, of), cut.listed = offsets_of(of.kv_blocks, of);
  cut.tiled_len = of.call.q.size(2), cut.listed_len = of.kv_len;
  cut.tiles = most_pieces(of.q_blocks, cut.tiled_len, tile.queries);
  cut.capacity = tile.is_packed
                     ? kernels::most_packed(cut.listed_len, of.kv_blocks.num_blocks(), tile.keys)
                     : most_pieces(of.kv_blocks, cut.listed_len, tile.keys);
  cut.summaries = summary_keys(of.selection, of.kv_len);
  return cut_lists(of, tile, cut, fault);
}

DeviceLists make_columns(const ListsOf& of, kernels::AttentionTile tile, const at::Tensor& fault) {
  Cut cut;
  cut.of_columns = true;
  cut.tiled = offsets_of(of.kv_blocks, of), cut.listed = offsets_of(of.q_blocks, of);
  cut.tiled_len = of.kv_len, cut.listed_len = of.call.q.size(2);
  cut.tiles = most_pieces(of.kv_blocks, cut.tiled_len, tile.queries);
  cut.capacity = most_pieces(of.q_blocks, cut.listed_len, tile.keys);
  DeviceLists out = cut_lists(of, tile, cut, fault);
  out.on_grid = begin_at_multiples(of.q_blocks, tile.keys);
  if (!of.selection.predicates.empty()) cut_pairs(of, out);
  const int64_t blocks = of.kv_blocks.num_blocks();
  for (const kernels::SummaryKeys& level : summary_keys(of.selection, of.kv_len)) {
    ++cut.keep;
    const int64_t end = level.begin + blocks * level.per_block;
    cut.tiled = at::arange(level.begin, end + 1, level.per_block, integers(of.call.q.device()))
                    .view({1, 1, blocks + 1});
    cut.tiled_len = end;
    cut.tiles = blocks * ((level.per_block + tile.queries - 1) / tile.queries);
    append(out, cut_lists(of, tile, cut, fault));
  }
  return out;
}

std::optional<std::string> why_not_cut(const std::vector<Predicate>& predicates) {
  int rules = 0, stored = 0;
  for (const Predicate& predicate : predicates) {
    if (std::holds_alternative<StoredPredicate>(predicate)) {
      ++stored;
    } else if (const auto* window = std::get_if<WindowPredicate>(&predicate)) {
      for (const AxisWindow& axis : window->axes) rules += axis.size > 0;
    } else {
      ++rules;
    }
  }
  if (rules > kernels::kMaxPairRules) {
    return str("takes predicates of up to ", kernels::kMaxPairRules,
               " rules, of a window one for each axis");
  }
  if (stored > kernels::kMaxStoredPairs) {
    return str("takes up to ", kernels::kMaxStoredPairs, " stored predicates");
  }
  return std::nullopt;
}

void cut_pairs(const ListsOf& of, DeviceLists& lists) {
  const AttentionCall& call = of.call;
  const at::Device device = call.q.device();
  const std::vector<Predicate>& predicates = of.selection.predicates;
  const std::vector<RuleValues> rules = rule_values(predicates, call.q_layout, call.kv_layout);
  const auto values = [&](const TokenLayout& layout, auto side, const at::Tensor& rows) {
    return values_by_position(rules, values_by_row(rules, layout, side).to(device), rows, lists);
  };
  const at::Tensor q = values(call.q_layout, &RuleValues::q, of.q_rows);
  const at::Tensor kv_rows =
      of.kv_rows.defined() ? per_head(of.kv_rows, call.q.size(1)) : of.kv_rows;
  const at::Tensor kv = values(call.kv_layout, &RuleValues::kv, kv_rows);
  const at::Tensor offsets =
      of_maps(offsets_of(lists.of_columns ? of.kv_blocks : of.q_blocks, of), lists);
  const auto sizes = lists.spans.sizes();  // maps, rows, capacity
  const at::Tensor seen =
      at::empty({sizes[0], sizes[1], sizes[2]}, integers(device).dtype(at::kByte));
  const at::Tensor needed = at::empty({sizes[0], sizes[1]}, integers(device).dtype(at::kLong));
  kernels::PairMasksArgs args;
  args.maps = sizes[0], args.map_heads = lists.map_heads;
  args.rows = sizes[1], args.capacity = sizes[2];
  args.counts = lists.counts.mutable_data_ptr<int32_t>();
  args.spans = static_cast<kernels::KeySpan*>(lists.spans.mutable_data_ptr());
  args.transposed = lists.of_columns;
  args.q_offsets = offsets.const_data_ptr<int32_t>();
  args.q_maps = maps_of(offsets);
  args.q_len = call.q.size(2), args.kv_len = of.kv_len;
  args.tile_queries = lists.tile.queries;
  for (const RuleValues& rule : rules) args.rules[args.num_rules++] = {rule.disc_limit};
  set_stored(predicates, args);
  args.q_values = q.const_data_ptr<int32_t>(), args.kv_values = kv.const_data_ptr<int32_t>();
  args.q_value_maps = q.size(0), args.kv_value_maps = kv.size(0);
  args.seen = seen.mutable_data_ptr<uint8_t>();
  args.needed = needed.mutable_data_ptr<int64_t>();
  ops::run_on("pair_masks", device, args, &kernels::find_pairs_cpu,
              FOVEA_CUDA_LAUNCHER(find_pairs_cuda));
  const at::Tensor behind = needed.flatten().cumsum(0);
  const at::Tensor first = behind - needed.flatten();
  const int64_t count = behind.numel() == 0 ? 0 : behind[-1].item<int64_t>();
  if (count == 0) return;
  require(count <= kMostMasks, ErrorCode::resource, "attention", "predicates need ", count,
          " masks of tiles, ", kMostMasks, " are possible");
  lists.masks = at::empty({count, lists.tile.queries, kernels::kMaskWords}, integers(device));
  args.first = first.const_data_ptr<int64_t>();
  args.masks = reinterpret_cast<uint32_t*>(lists.masks.mutable_data_ptr<int32_t>());
  ops::run_on("pair_masks", device, args, &kernels::fill_masks_cpu,
              FOVEA_CUDA_LAUNCHER(fill_masks_cuda));
}

}  // namespace fovea
