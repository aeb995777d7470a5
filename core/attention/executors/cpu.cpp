#include "core/attention/executors/cpu.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include "core/attention/lower.h"
#include "core/check.h"
#include "core/ops/launch.h"
#include "core/parallel.h"
#include "kernels/attention/block_sparse.h"

namespace fovea {
namespace {

constexpr int64_t kMaxChannels = 256;
constexpr int64_t kAlignment = 64;

struct CpuLists : LoweredPlan {
  std::vector<HostLists> items;  // one, or one for each item of the batch
  at::Tensor q_rows, kv_rows;    // int32 [batch or 1, heads or 1, seq_len]; undefined: identity
};

const SoftmaxBranch& branch_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind);
}

bool has_padding(const TokenLayout& layout) {
  for (const at::Tensor& length : layout.valid_len()) {
    if (length.defined()) return true;
  }
  return false;
}

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
kernels::LogitBias bias_of_item(const at::Tensor& bias, int64_t item) {
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

}  // namespace

std::optional<std::string> CpuExecutor::why_not(const AttentionPlan& plan,
                                                const AttentionCall& call) const {
  if (!call.q.is_cpu()) return "runs on the CPU";
  if (plan.is_dense()) return "leaves dense plans to sdpa";
  if (plan.branches.size() != 1 || !std::holds_alternative<SoftmaxBranch>(plan.branches[0].kind)) {
    return "takes plans of one softmax branch";
  }
  const SoftmaxBranch& branch = branch_of(plan);
  if (branch.keys) return "takes no given keys";
  if (!branch.precision.is_storage()) return "computes in the storage type";
  if (!branch.selection.summaries.empty()) return "takes no summary blocks";
  if (!plan.group_weights.empty()) return "takes no group weights";
  const at::ScalarType dtype = call.q.scalar_type();
  if (dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16) {
    return fovea::str("computes in fp32, the inputs are ", dtype);
  }
  if (call.q.size(3) > kMaxChannels || call.v.size(3) > kMaxChannels) {
    return fovea::str("takes up to ", kMaxChannels, " channels a head");
  }
  const bool needs_gradient =
      call.q.requires_grad() || call.k.requires_grad() || call.v.requires_grad();
  if (c10::GradMode::is_enabled() && needs_gradient) return "has no gradients";
  if (plan.kv_order.kind() == TokenOrder::Kind::index && has_padding(call.kv_layout)) {
    return "takes no padding that an index scatters";
  }
  return std::nullopt;
}

std::shared_ptr<const LoweredPlan> CpuExecutor::lower(const AttentionPlan& plan,
                                                      const AttentionCall& call) const {
  auto out = std::make_shared<CpuLists>();
  const SoftmaxBranch& branch = branch_of(plan);
  const int64_t items = lists_differ(plan, branch) ? call.q.size(0) : 1;
  for (int64_t item = 0; item < items; ++item) {
    out->items.push_back(lower_to_lists(plan, branch, call, item));
  }
  const auto rows = [](const TokenOrder& order, const TokenLayout& layout) {
    if (order.is_identity()) return at::Tensor();
    return order.rows(layout, at::kCPU).to(at::kInt).contiguous();
  };
  out->q_rows = rows(plan.q_order, call.q_layout);
  out->kv_rows = rows(plan.kv_order, call.kv_layout);
  return out;
}

AttentionResult CpuExecutor::run(const AttentionPlan& plan, const AttentionCall& call,
                                 const LoweredPlan* lowered) {
  std::shared_ptr<const LoweredPlan> own;
  if (lowered == nullptr) lowered = (own = lower(plan, call)).get();
  const auto& lists = dynamic_cast<const CpuLists&>(*lowered);
  const at::Tensor q = with_whole_channels(call.q), k = with_whole_channels(call.k);
  const at::Tensor v = with_whole_channels(call.v);
  const at::Tensor bias = call.bias.defined() ? call.bias.to(at::kFloat) : at::Tensor();
  const int64_t batch = q.size(0), heads = q.size(1), q_len = q.size(2);
  AttentionResult result;
  result.out = at::empty({batch, heads, q_len, v.size(3)}, q.options());
  result.lse = at::empty({batch, heads, q_len}, q.options().dtype(at::kFloat));
  const kernels::Parallel parallel{run_tasks, nullptr, at::get_num_threads()};
  for (int64_t item = 0; item < batch; ++item) {
    const HostLists& own_lists = lists.items[lists.items.size() == 1 ? 0 : item];
    std::vector<int32_t> lengths;
    if (has_padding(call.kv_layout)) lengths = block_lengths(own_lists, call.kv_layout, item);
    kernels::BlockSparseArgs args;
    args.batch = 1;
    args.heads = heads;
    args.kv_heads = k.size(1);
    args.q_len = q_len;
    args.kv_len = k.size(2);
    args.dim = q.size(3);
    args.value_dim = v.size(3);
    args.q = rows_of_item(q, item);
    args.k = rows_of_item(k, item);
    args.v = rows_of_item(v, item);
    const at::Tensor out = result.out[item];
    args.out = {out.mutable_data_ptr(), ops::kernel_dtype(out.scalar_type()), 0, out.stride(0),
                out.stride(1)};
    args.lse = result.lse[item].mutable_data_ptr<float>();
    args.q_order = order_of_item(lists.q_rows, item);
    args.kv_order = order_of_item(lists.kv_rows, item);
    args.lists = block_lists(own_lists, lengths);
    args.sm_scale =
        static_cast<float>(call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))));
    if (bias.defined()) args.bias = bias_of_item(bias, item);
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_workspace_bytes(args, parallel.threads);
    if (!workspace_.defined() || workspace_.numel() < bytes + kAlignment) {
      workspace_ = at::empty({bytes + kAlignment}, at::kByte);
    }
    auto* memory = workspace_.mutable_data_ptr<uint8_t>();
    memory += (kAlignment - reinterpret_cast<uintptr_t>(memory) % kAlignment) % kAlignment;
    const kernels::Status status =
        kernels::block_sparse_cpu(args, {memory, bytes}, parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
  }
  return result;
}

}  // namespace fovea
