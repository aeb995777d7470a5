#include "core/attention/executors/cpu_softmax.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "core/check.h"
#include "core/ops/launch.h"
#include "core/parallel.h"
#include "kernels/attention/block_sparse.h"

namespace fovea {
namespace {

constexpr int64_t kAlignment = 64;

// Valid keys at the beginning of each block [maps, blocks], for orders that leave segments where
// they are: padding is at the end of a segment, and no block straddles two.
std::vector<int32_t> block_lengths(const HostLists& lists, const TokenLayout& layout,
                                   int64_t item) {
  std::vector<int32_t> out;
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int32_t* offsets = lists.kv_offsets.data() + map * (lists.num_kv_blocks + 1);
    size_t segment = 0;
    int64_t begin = 0;
    for (int64_t block = 0; block < lists.num_kv_blocks; ++block) {
      while (segment + 1 < layout.segments().size() &&
             offsets[block] >= begin + layout.segments()[segment].capacity) {
        begin += layout.segments()[segment++].capacity;
      }
      const at::Tensor& lengths = layout.valid_len()[segment];
      const int64_t valid =
          lengths.defined() ? lengths[item].item<int64_t>() : layout.segments()[segment].capacity;
      const int64_t size = offsets[block + 1] - offsets[block];
      out.push_back(
          static_cast<int32_t>(std::clamp<int64_t>(begin + valid - offsets[block], 0, size)));
    }
  }
  return out;
}

template <typename T>
const T* pointer(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

kernels::BlockLists block_lists(const HostLists& lists, const std::vector<int32_t>& lengths) {
  kernels::BlockLists out;
  out.maps = lists.maps;
  out.map_head_stride = lists.maps > 1 ? 1 : 0;
  out.num_q_blocks = lists.num_q_blocks;
  out.num_kv_blocks = lists.num_kv_blocks;
  out.q_offsets = lists.q_offsets.data();
  out.kv_offsets = lists.kv_offsets.data();
  out.row_ptr = lists.row_ptr.data();
  out.kv_index = pointer(lists.kv_index);
  out.num_entries = static_cast<int64_t>(lists.kv_index.size());
  out.kv_block_len = pointer(lengths);
  out.bits_offset = pointer(lists.bits_offset);
  out.bits = pointer(lists.bits);
  out.num_bit_words = static_cast<int64_t>(lists.bits.size());
  return out;
}

kernels::HeadRows rows_of_item(const at::Tensor& x, int64_t item) {
  kernels::HeadRows out;
  out.data = x[item].const_data_ptr();
  out.dtype = ops::kernel_dtype(x.scalar_type());
  out.batch_stride = 0;
  out.head_stride = x.stride(1);
  out.row_stride = x.stride(2);
  return out;
}

kernels::RowOrder order_of_item(const at::Tensor& rows, int64_t item) {
  if (!rows.defined()) return {};
  const at::Tensor own = rows[rows.size(0) == 1 ? 0 : item];
  return {own.const_data_ptr<int32_t>(), 0, own.size(0) == 1 ? 0 : own.stride(0)};
}

// [batch or 1, heads or 1, q_len or 1, kv_len or 1] fp32
kernels::LogitBias bias_of_item(const at::Tensor& bias, int64_t item, int64_t heads) {
  if (!bias.defined()) return {};
  FOVEA_ASSERT(bias.size(1) == 1 || bias.size(1) == heads, "bias ", bias.sizes());
  const at::Tensor own = bias[bias.size(0) == 1 ? 0 : item];
  const auto stride = [&](int64_t axis) { return own.size(axis) == 1 ? 0 : own.stride(axis); };
  return {own.const_data_ptr<float>(), 0, stride(0), stride(1), stride(2)};
}

at::Tensor with_whole_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

void run_tasks(void*, int64_t count, kernels::Parallel::Task task, void* state) {
  parallel_for(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(state, i);
  });
}

kernels::Workspace aligned(at::Tensor& memory, int64_t bytes) {
  if (!memory.defined() || memory.numel() < bytes + kAlignment) {
    memory = at::empty({bytes + kAlignment}, at::kByte);
  }
  auto* data = memory.mutable_data_ptr<uint8_t>();
  data += (kAlignment - reinterpret_cast<uintptr_t>(data) % kAlignment) % kAlignment;
  return {data, bytes};
}

// All but the lists.
kernels::BlockSparseArgs args_of_item(const SoftmaxInputs& inputs, const SoftmaxLists& lists,
                                      const Partial& result, int64_t item) {
  const at::Tensor& q = inputs.q;
  kernels::BlockSparseArgs args;
  args.batch = 1;
  args.heads = q.size(1);
  args.kv_heads = inputs.k.size(1);
  args.q_len = q.size(2);
  args.kv_len = inputs.k.size(2);
  args.dim = q.size(3);
  args.value_dim = inputs.v.size(3);
  args.q = rows_of_item(q, item);
  args.k = rows_of_item(inputs.k, item);
  args.v = rows_of_item(inputs.v, item);
  const at::Tensor out = result.out[item];
  args.out = {out.mutable_data_ptr(), ops::kernel_dtype(out.scalar_type()), 0, out.stride(0),
              out.stride(1)};
  args.lse = result.lse[item].mutable_data_ptr<float>();
  args.q_order = order_of_item(lists.q_rows, item);
  args.kv_order = order_of_item(lists.kv_rows, item);
  args.sm_scale = static_cast<float>(inputs.sm_scale);
  args.bias = bias_of_item(inputs.bias, item, args.heads);
  args.key_bias = bias_of_item(inputs.key_bias, item, args.heads);
  return args;
}

}  // namespace

Partial cpu_softmax(const SoftmaxInputs& inputs, const SoftmaxLists& lists, at::Tensor& workspace) {
  SoftmaxInputs whole = inputs;
  for (at::Tensor* x : {&whole.q, &whole.k, &whole.v}) *x = with_whole_channels(*x);
  if (whole.bias.defined()) whole.bias = whole.bias.to(at::kFloat);
  if (whole.key_bias.defined()) whole.key_bias = whole.key_bias.to(at::kFloat).unsqueeze(2);
  const at::Tensor& q = whole.q;
  const int64_t batch = q.size(0), heads = q.size(1), q_len = q.size(2);
  Partial result;
  result.out = at::empty({batch, heads, q_len, whole.v.size(3)}, q.options());
  result.lse = at::empty({batch, heads, q_len}, q.options().dtype(at::kFloat));
  const kernels::Parallel parallel{run_tasks, nullptr, at::get_num_threads()};
  for (int64_t item = 0; item < batch; ++item) {
    const HostLists& own_lists = lists.items[lists.items.size() == 1 ? 0 : item];
    std::vector<int32_t> lengths;
    if (whole.padding) lengths = block_lengths(own_lists, *whole.padding, item);
    kernels::BlockSparseArgs args = args_of_item(whole, lists, result, item);
    args.lists = block_lists(own_lists, lengths);
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_workspace_bytes(args, parallel.threads);
    const kernels::Status status =
        kernels::block_sparse_cpu(args, aligned(workspace, bytes), parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
  }
  return result;
}

}  // namespace fovea
