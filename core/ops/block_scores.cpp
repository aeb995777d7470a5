#include "core/ops/block_scores.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/ops/device_kernel.h"
#include "core/ops/kernel_threads.h"
#include "core/ops/widened.h"
#include "kernels/attention/block_scores.h"

namespace fovea::ops {
namespace {

constexpr int64_t kPack = 8;           // channels that a GPU reads at a time
constexpr int64_t kMostHeads = 65535;  // of all items, on a GPU
constexpr int64_t kMostChannels = 256;

at::Tensor with_whole_channels(const at::Tensor& x) {
  return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous();
}

// [batch, heads, rows, dim] or [heads, rows, dim]
kernels::HeadRows view(const at::Tensor& x) {
  kernels::HeadRows out;
  out.data = x.const_data_ptr();
  out.dtype = kernel_dtype(x.scalar_type());
  out.batch_stride = x.dim() == 4 ? x.stride(0) : 0;
  out.head_stride = x.stride(-3);
  out.row_stride = x.stride(-2);
  return out;
}

// With 16-byte packs of channels.
at::Tensor with_packs(const at::Tensor& x) {
  const auto is_whole = [&](int64_t axis) {
    return x.size(axis) == 1 || x.stride(axis) % kPack == 0;
  };
  const bool fits = with_whole_channels(x).is_same(x) && is_whole(0) && is_whole(1) && is_whole(2);
  const bool is_aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return fits && is_aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}

int64_t stride_of(const at::Tensor& x, int64_t axis) {
  return x.size(axis) == 1 ? 0 : x.stride(axis);
}

bool is_taken(const at::Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  const bool graph = c10::GradMode::is_enabled() && x.requires_grad();
  return !graph && x.numel() > 0 &&
         (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
}

void run(const char* op, const kernels::Status& status) {
  FOVEA_ASSERT(status.ok(), op, ": ", status.message);
}

void share_on_cpu(const kernels::BlockSharesArgs& args) {
  const kernels::Parallel parallel = all_threads();
  run("block_shares", kernels::check(args));
  const int64_t bytes = kernels::block_shares_workspace_bytes(args, parallel.threads);
  at::Tensor memory;
  run("block_shares",
      kernels::block_shares_cpu(args, workspace_in(memory, bytes), parallel, kernels::best_isa()));
}

void share_on_cuda([[maybe_unused]] const kernels::BlockSharesArgs& args,
                   [[maybe_unused]] at::Device device) {
#if FOVEA_HAS_CUDA
  const kernels::CudaTarget target = cuda_target(device);
  const int64_t bytes = kernels::block_shares_cuda_workspace_bytes(args, target);
  const at::Tensor memory = at::empty({bytes}, at::device(device).dtype(at::kByte));
  const kernels::Status status =
      kernels::block_shares_cuda(args, {memory.mutable_data_ptr<uint8_t>(), bytes}, target);
  require(accepted("block_shares", status), ErrorCode::device, "block_shares", status.message);
#else
  FOVEA_ASSERT(false, "block_shares without CUDA kernels");
#endif
}

// What a kernel reads of groups.
struct GroupsView {
  at::Tensor rows, offsets, weight;

  explicit GroupsView(const TokenGroups& groups)
      : rows(groups.rows.to(at::kInt).contiguous()),
        offsets(groups.offsets.to(at::kInt).contiguous()) {
    if (!groups.weight.defined()) return;
    weight = groups.weight.to(at::kFloat).contiguous();
    FOVEA_ASSERT(weight.numel() == rows.size(1));
  }
  const float* weights() const {
    return weight.defined() ? weight.const_data_ptr<float>() : nullptr;
  }
};

void sum_on_cpu(const kernels::BlockSumsArgs& args) {
  run("block_sums", kernels::block_sums_cpu(args, all_threads(), kernels::best_isa()));
}

}  // namespace

bool has_block_sums(const at::Tensor& x) {
  if (x.is_cpu()) return is_taken(x);
  return x.is_cuda() && kHasCudaKernels && is_taken(x) && x.size(3) % kPack == 0 &&
         x.size(3) <= kMostChannels && x.size(0) * x.size(1) <= kMostHeads;
}

bool has_block_shares(const at::Tensor& x) {
  return has_block_sums(x) && x.size(3) <= kMostChannels &&
         (x.is_cpu() || x.scalar_type() != at::kFloat);
}

BlockSums block_sums(const at::Tensor& x, const BlockPositions& positions, const at::Tensor& centre,
                     SumsOf wanted) {
  const at::Tensor whole = x.is_cuda() ? with_packs(x) : with_whole_channels(x);
  kernels::BlockSumsArgs args;
  args.batch = x.size(0), args.heads = x.size(1), args.rows = x.size(2), args.dim = x.size(3);
  args.x = view(whole);
  const at::Tensor ends = positions.offsets.contiguous();
  args.offsets = ends.const_data_ptr<int32_t>();
  args.offsets_batch_stride = stride_of(ends, 0), args.offsets_head_stride = stride_of(ends, 1);
  args.blocks = ends.size(2) - 1;
  at::Tensor order, mask, middle;
  if (positions.rows.defined()) {
    order = positions.rows.contiguous();
    args.order = {order.const_data_ptr<int32_t>(), stride_of(order, 0), stride_of(order, 1)};
  }
  if (positions.valid.defined()) {
    mask = positions.valid.expand({args.batch, args.rows}).contiguous();
    args.valid = mask.const_data_ptr<bool>();
  }
  if (centre.defined()) {
    middle = centre.to(at::kFloat).expand({args.batch, args.heads, 1, args.dim}).contiguous();
    args.centre = middle.const_data_ptr<float>();
  }
  BlockSums out;
  const auto make = [&](at::Tensor& sums) {
    sums =
        at::empty({args.batch, args.heads, args.blocks, args.dim}, x.options().dtype(at::kFloat));
    return sums.mutable_data_ptr<float>();
  };
  if (wanted != SumsOf::directions) args.sum = make(out.rows);
  if (wanted != SumsOf::rows) args.directions = make(out.directions);
  run_on("block_sums", x.device(), args, &sum_on_cpu, FOVEA_CUDA_LAUNCHER(block_sums_cuda));
  return out;
}

at::Tensor wide_product(const at::Tensor& a, const at::Tensor& b) {
  const bool is_half = a.element_size() == 2 && a.scalar_type() == b.scalar_type();
  if (!a.is_cuda() || !is_half) return at::matmul(widened(a), widened(b));
  // LibTorch has no gradient of it.
  const at::Tensor left = a.detach().flatten(0, 1), right = b.detach().flatten(0, 1);
  return at::bmm(left, right, at::kFloat).unflatten(0, {a.size(0), a.size(1)});
}

at::Tensor block_shares(const at::Tensor& q, const TokenGroups& q_groups, const at::Tensor& k,
                        const TokenGroups& kv_groups, double scale, Shares of_blocks) {
  const auto laid_out = [](const at::Tensor& x) {
    return x.is_cuda() ? with_packs(x.unsqueeze(0))[0] : with_whole_channels(x);
  };
  const at::Tensor q_whole = laid_out(q), k_whole = laid_out(k);
  const GroupsView from(q_groups), to(kv_groups);
  FOVEA_ASSERT(from.rows.size(0) == to.rows.size(0));
  kernels::BlockSharesArgs args;
  args.heads = q.size(0), args.q_len = q.size(1), args.dim = q.size(2);
  args.kv_heads = k.size(0), args.kv_len = k.size(1);
  args.q = view(q_whole), args.k = view(k_whole);
  args.phases = from.rows.size(0);
  args.q_groups = from.rows.size(1), args.kv_groups = to.rows.size(1);
  args.q_rows = from.rows.const_data_ptr<int32_t>();
  args.kv_rows = to.rows.const_data_ptr<int32_t>();
  args.q_blocks = from.offsets.numel() - 1, args.kv_blocks = to.offsets.numel() - 1;
  args.q_offsets = from.offsets.const_data_ptr<int32_t>();
  args.kv_offsets = to.offsets.const_data_ptr<int32_t>();
  args.q_weight = from.weights(), args.kv_weight = to.weights();
  args.scale = scale;
  args.largest = of_blocks == Shares::largest;
  const at::Tensor out =
      at::empty({args.heads, args.q_blocks, args.kv_blocks}, q.options().dtype(at::kFloat));
  args.shares = out.mutable_data_ptr<float>();
  q.is_cuda() ? share_on_cuda(args, q.device()) : share_on_cpu(args);
  return out;
}

}  // namespace fovea::ops
