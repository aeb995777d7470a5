#include <initializer_list>
#include <limits>
#include <vector>

#include "kernels/attention/block_sparse.h"
#include "kernels/attention/checks.h"
#include "kernels/attention/work_layout.h"

namespace fovea::kernels {

Status check_order(const RowOrder& order, int64_t batch, int64_t heads, int64_t len) {
  if (!order.rows) return {};
  for (int64_t b = 0; b < (order.batch_stride == 0 ? 1 : batch); ++b) {
    for (int64_t h = 0; h < (order.head_stride == 0 ? 1 : heads); ++h) {
      const int32_t* rows = order.rows + b * order.batch_stride + h * order.head_stride;
      for (int64_t i = 0; i < len; ++i) {
        if (rows[i] < 0 || rows[i] >= len) return invalid("an order leaves the rows of its tensor");
      }
    }
  }
  return {};
}

namespace {

constexpr int64_t kMax = std::numeric_limits<int32_t>::max() - kMaxDim;

Status check_sizes(const BlockSparseArgs& args) {
  for (const int64_t size : {args.batch, args.heads, args.kv_heads, args.q_len, args.kv_len}) {
    if (size < 0) return invalid("negative size");
    if (size > kMax) return {StatusCode::unsupported, "a size beyond 2^31"};
  }
  if (args.dim < 1 || args.value_dim < 1) return invalid("heads without channels");
  if (args.dim > kMaxDim || args.value_dim > kMaxDim)
    return {StatusCode::unsupported, "more than 256 channels per head"};
  if (args.kv_heads > 0 ? args.heads % args.kv_heads != 0 : args.heads > 0)
    return invalid("heads is not a multiple of kv_heads");
  return {};
}

/// Of an order that check_order has passed. A row that is left out would not be written, one that
/// comes twice be written by two tasks.
Status check_each_once(const RowOrder& order, const BlockSparseArgs& args) {
  if (!order.rows) return {};
  std::vector<bool> seen;
  for (int64_t b = 0; b < (order.batch_stride == 0 ? 1 : args.batch); ++b) {
    for (int64_t h = 0; h < (order.head_stride == 0 ? 1 : args.heads); ++h) {
      const int32_t* rows = order.rows + b * order.batch_stride + h * order.head_stride;
      seen.assign(static_cast<size_t>(args.q_len), false);
      for (int64_t i = 0; i < args.q_len; ++i) {
        const auto row = static_cast<size_t>(rows[i]);
        if (seen[row]) return invalid("an order of queries has a row twice");
        seen[row] = true;
      }
    }
  }
  return {};
}

Status check_data(const BlockSparseArgs& args) {
  const bool has_q = args.batch > 0 && args.heads > 0 && args.q_len > 0;
  const bool has_kv = args.batch > 0 && args.kv_heads > 0 && own_keys(args) > 0;
  const bool integers = args.q_int8.data || args.k_int8.data;
  if (has_q && ((!integers && !args.q.data) || !args.out.data)) return invalid("null data");
  if (has_kv && ((!integers && !args.k.data) || !args.v.data)) return invalid("null data");
  if (integers) {
    if ((has_q && !args.q_int8.data) || (has_kv && !args.k_int8.data))
      return invalid("integers for one of q and k");
    if ((args.q_int8.data && !args.q_int8.scale) || (args.k_int8.data && !args.k_int8.scale))
      return invalid("integers without factors");
  }
  if (const MoreKeys& more = args.more; more.k.data) {
    if (integers) return invalid("integers with keys behind them");
    if (!more.v.data) return invalid("null data");
    if (more.k.dtype != DType::f32 || more.v.dtype != DType::f32)
      return invalid("keys behind the others are not fp32");
    if (more.own < 0 || more.begin < more.own || more.begin % kUnit != 0 ||
        more.begin > args.kv_len)
      return invalid("keys behind the others begin where they cannot");
  }
  const DType type = args.out.dtype;
  if ((!integers && (args.q.dtype != type || args.k.dtype != type)) || args.v.dtype != type)
    return invalid("q, k, v and out differ in dtype");
  return {};
}

Status check_weights(const BlockSparseArgs& args) {
  const QuantizedWeights& weights = args.weights;
  if (weights.format == WeightFormat::none) return {};
  if (args.out.dtype != DType::f32)
    return {StatusCode::unsupported, "quantized weights meet values of fp32"};
  if (args.batch == 0 || args.heads == 0 || args.q_len == 0) return {};
  if (weights.needs_largest() && !weights.row_max)
    return invalid("quantized weights without row_max");
  if (!weights.per_entry || args.lists.num_entries == 0) return {};
  if (!weights.largest) return invalid("quantized weights per entry without largest");
  // Where (batch, head) share a map, they do not share what is found for its entries.
  const auto clash = [&](int64_t count, int64_t map_stride, int64_t stride) {
    return count > 1 && stride < args.lists.num_entries && (stride != 0 || map_stride == 0);
  };
  if (clash(args.batch, args.lists.map_batch_stride, weights.largest_batch_stride) ||
      clash(args.heads, args.lists.map_head_stride, weights.largest_head_stride)) {
    return invalid("heads share the factors of quantized weights");
  }
  return {};
}

Status check_offsets(const int32_t* offsets, int64_t blocks, int64_t len) {
  if (offsets[0] < 0 || offsets[blocks] > len) return invalid("blocks beyond the sequence");
  for (int64_t i = 0; i < blocks; ++i) {
    if (offsets[i] > offsets[i + 1]) return invalid("block offsets descend");
  }
  return {};
}

/// The entries of one row of a map.
Status check_entries(const BlockLists& lists, int64_t map, int64_t block) {
  const int64_t row = map * (lists.num_q_blocks + 1) + block;
  const int64_t q_rows = lists.q_offsets[row + 1] - lists.q_offsets[row];
  const int32_t* offsets = lists.kv_offsets + map * (lists.num_kv_blocks + 1);
  int64_t last = -1;
  for (int64_t i = lists.row_ptr[row]; i < lists.row_ptr[row + 1]; ++i) {
    const int64_t index = lists.kv_index[i];
    if (index <= last) return invalid("listed blocks of keys do not ascend");
    if (index >= lists.num_kv_blocks) return invalid("a listed block of keys does not exist");
    last = index;
    if (!lists.bits_offset || lists.bits_offset[i] == -1) continue;
    const int64_t words = (offsets[index + 1] - offsets[index] + 63) / 64 * q_rows;
    if (lists.bits_offset[i] < 0 || words > lists.num_bit_words - lists.bits_offset[i])
      return invalid("bits of a block beyond num_bit_words");
  }
  return {};
}

Status check_map(const BlockSparseArgs& args, int64_t map) {
  const BlockLists& lists = args.lists;
  const int32_t* q_offsets = lists.q_offsets + map * (lists.num_q_blocks + 1);
  const int32_t* kv_offsets = lists.kv_offsets + map * (lists.num_kv_blocks + 1);
  const int64_t* row_ptr = lists.row_ptr + map * (lists.num_q_blocks + 1);
  if (const Status s = check_offsets(q_offsets, lists.num_q_blocks, args.q_len); !s.ok()) return s;
  if (q_offsets[0] != 0 || q_offsets[lists.num_q_blocks] != args.q_len)
    return invalid("the blocks of queries do not cover the sequence");
  if (const Status s = check_offsets(kv_offsets, lists.num_kv_blocks, args.kv_len); !s.ok())
    return s;
  for (int64_t i = 0; lists.kv_block_len && i < lists.num_kv_blocks; ++i) {
    const int32_t len = lists.kv_block_len[map * lists.num_kv_blocks + i];
    if (len < 0 || len > kv_offsets[i + 1] - kv_offsets[i])
      return invalid("kv_block_len beyond its block");
  }
  if (row_ptr[0] < 0 || row_ptr[lists.num_q_blocks] > lists.num_entries)
    return invalid("row_ptr beyond the entries");
  for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
    if (row_ptr[i] > row_ptr[i + 1]) return invalid("row_ptr descends");
  }
  for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
    if (const Status s = check_entries(lists, map, i); !s.ok()) return s;
  }
  return {};
}

Status check_lists(const BlockSparseArgs& args) {
  const BlockLists& lists = args.lists;
  if (lists.maps < 1 || lists.num_q_blocks < 0 || lists.num_kv_blocks < 0 ||
      lists.num_entries < 0 || lists.num_bit_words < 0)
    return invalid("negative size in the block lists");
  for (const int64_t size : {lists.maps, lists.num_q_blocks, lists.num_kv_blocks}) {
    if (size > kMax) return {StatusCode::unsupported, "a size of the block lists beyond 2^31"};
  }
  if (!lists.q_offsets || !lists.kv_offsets || !lists.row_ptr) return invalid("null block lists");
  if (lists.num_entries > 0 && !lists.kv_index) return invalid("null kv_index");
  if (lists.bits_offset && lists.num_bit_words > 0 && !lists.bits) return invalid("null bits");
  if (lists.map_batch_stride < 0 || lists.map_head_stride < 0)
    return invalid("negative map stride");
  // Steps larger than all maps are not multiplied: they might overflow.
  if ((args.batch > 1 && lists.map_batch_stride > lists.maps) ||
      (args.heads > 1 && lists.map_head_stride > lists.maps)) {
    return invalid("map strides lead beyond the maps");
  }
  if (args.batch > 0 && args.heads > 0 &&
      (args.batch - 1) * lists.map_batch_stride + (args.heads - 1) * lists.map_head_stride >=
          lists.maps) {
    return invalid("map strides lead beyond the maps");
  }
  for (int64_t map = 0; map < lists.maps; ++map) {
    if (const Status s = check_map(args, map); !s.ok()) return s;
  }
  return {};
}

}  // namespace

Status check(const BlockSparseArgs& args) {
  if (const Status s = check_sizes(args); !s.ok()) return s;
  if (const Status s = check_data(args); !s.ok()) return s;
  if (const Status s = check_weights(args); !s.ok()) return s;
  if (const Status s = check_order(args.q_order, args.batch, args.heads, args.q_len); !s.ok())
    return s;
  if (const Status s = check_order(args.kv_order, args.batch, args.kv_heads, own_keys(args));
      !s.ok())
    return s;
  if (const Status s = check_each_once(args.q_order, args); !s.ok()) return s;
  return check_lists(args);
}

}  // namespace fovea::kernels
