#pragma once

#include "kernels/attention/pair_masks.h"
#include "kernels/common/host_device.h"

// What pair_masks.cpp and pair_masks.cu share.

namespace fovea::kernels {

/// The values of one side and map: number `value` of the token at a position is
/// data[value * stride + position].
struct SideValues {
  const int32_t* data;
  int64_t stride;
};

FOVEA_HD inline SideValues q_values(const PairMasksArgs& args, int64_t map) {
  const int64_t size = (2 * args.num_rules + 2) * args.q_len;
  return {args.q_values + (args.q_value_maps == 1 ? 0 : map) * size, args.q_len};
}

FOVEA_HD inline SideValues kv_values(const PairMasksArgs& args, int64_t map) {
  const int64_t size = (2 * args.num_rules + 2) * args.kv_len;
  return {args.kv_values + (args.kv_value_maps == 1 ? 0 : map) * size, args.kv_len};
}

/// Whether a query sees a key.
///
/// q, kv  begin with the token's own values
FOVEA_HD inline bool sees(const PairMasksArgs& args, int64_t map, SideValues q, SideValues kv) {
  const int outside = 2 * args.num_rules;
  bool out = true;
  if (q.data[outside * q.stride] == 0 && kv.data[outside * kv.stride] == 0) {
    for (int rule = 0; rule < args.num_rules; ++rule) {
      const int32_t q0 = q.data[2 * rule * q.stride], q1 = q.data[(2 * rule + 1) * q.stride];
      const int32_t k0 = kv.data[2 * rule * kv.stride];
      const int64_t limit = args.rules[rule].disc_limit;
      if (limit < 0) {
        out = out && q0 <= k0 && k0 < q1;
      } else {
        const int64_t dy = int64_t{q0} - k0;
        const int64_t dx = int64_t{q1} - kv.data[(2 * rule + 1) * kv.stride];
        out = out && dy * dy + dx * dx < limit;
      }
    }
  }
  for (int i = 0; out && i < args.num_stored; ++i) {
    const StoredPairs& stored = args.stored[i];
    out = stored.visible[map / args.map_heads * stored.batch_stride +
                         map % args.map_heads * stored.head_stride +
                         q.data[(outside + 1) * q.stride] * stored.q_stride +
                         kv.data[(outside + 1) * kv.stride] * stored.kv_stride] != 0;
  }
  return out;
}

/// Whether number `own` of a row's side sees or is seen by number `other` of its spans' side.
FOVEA_HD inline bool sees(const PairMasksArgs& args, int64_t map, int64_t own, int64_t other) {
  SideValues q = q_values(args, map), kv = kv_values(args, map);
  q.data += args.transposed ? other : own;
  kv.data += args.transposed ? own : other;
  return sees(args, map, q, kv);
}

/// Whether a span is of pooled keys, which predicates do not speak of.
FOVEA_HD inline bool is_pooled(const PairMasksArgs& args, const KeySpan& span) {
  return !args.transposed && span.begin >= args.kv_len;
}

/// Positions of a row of blocks, of queries or if transposed of keys; none of what is no block.
struct RowBlock {
  int32_t begin, end;

  FOVEA_HD RowBlock(const PairMasksArgs& args, int64_t map, int64_t row) {
    const int32_t* offsets = args.q_offsets + (args.q_maps == 1 ? 0 : map) * (args.rows + 1) + row;
    begin = offsets[0], end = offsets[1];
    const int64_t len = args.transposed ? args.kv_len : args.q_len;
    if (begin < 0 || end < begin || end > len) begin = end = 0;
  }
  FOVEA_HD int64_t tiles(int32_t tile_queries) const {
    return (int64_t{end} - begin + tile_queries - 1) / tile_queries;
  }
};

constexpr uint8_t kSeesNone = 0, kSeesSome = 1, kSeesAll = 2;

}  // namespace fovea::kernels
