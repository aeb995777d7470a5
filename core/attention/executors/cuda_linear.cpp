#include "core/attention/executors/cuda_linear.h"

#include <algorithm>
#include <functional>
#include <initializer_list>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/cuda_views.h"
#include "core/check.h"
#include "core/ops/device_kernel.h"
#include "core/ops/gather_rows.h"
#include "kernels/attention/linear_blocks.h"

namespace fovea {
namespace {

constexpr int64_t kMostHeads = 65535;  // of all items

kernels::LinearFeature feature_of(FeatureMap map) {
  if (map == FeatureMap::softmax) return kernels::LinearFeature::softmax;
  if (map == FeatureMap::relu) return kernels::LinearFeature::relu;
  return kernels::LinearFeature::elu_plus_one;
}

// Null too where the selection is of keys that are not the call's.
const Selection* complemented(const AttentionPlan& plan, const LinearBranch& branch) {
  if (!branch.complement_of) return nullptr;
  const auto& softmax = std::get<SoftmaxBranch>(plan.branches[*branch.complement_of].kind);
  return softmax.keys ? nullptr : &softmax.selection;
}

bool is_taken(const BlockAxis& blocks, const TokenOrder& order, const TokenLayout& layout) {
  const bool is_shared =
      order.kind() != TokenOrder::Kind::index && order.kind() != TokenOrder::Kind::axes;
  return is_shared && !blocks.host_offsets().empty() && blocks.num_blocks() > 0 &&
         blocks.max_size() <= kernels::kMostLinearRows && !layout.valid_mask().defined();
}

// Whether any of them is asked for its gradient.
bool want_gradient(std::initializer_list<std::reference_wrapper<const at::Tensor>> all) {
  return c10::GradMode::is_enabled() &&
         std::any_of(all.begin(), all.end(),
                     [](const at::Tensor& x) { return x.defined() && x.requires_grad(); });
}

// Blocks of one side; keeps what they point at.
struct Side {
  ops::BlockPositions positions;
  kernels::LinearBlocks blocks;

  Side(const BlockAxis& axis, const TokenOrder& order, const TokenLayout& layout, at::Device device)
      : positions(positions_of_blocks(axis, order, layout, device)) {
    blocks.offsets = positions.offsets.const_data_ptr<int32_t>();
    blocks.blocks = axis.num_blocks(), blocks.len = layout.seq_len();
    blocks.most_rows = static_cast<int32_t>(axis.max_size());
    if (positions.rows.defined()) {
      positions.rows = positions.rows.contiguous();
      blocks.order.rows = positions.rows.const_data_ptr<int32_t>();  // of all heads
    }
  }
};

const Selection& selection_of(const AttentionPlan& plan, const LinearBranch& branch) {
  const Selection* selection = complemented(plan, branch);
  FOVEA_ASSERT(selection != nullptr, "a linear branch of all keys");
  return *selection;
}

}  // namespace

LinearStates linear_states_of_keys(const AttentionPlan& plan, const LinearBranch& branch,
                                   const AttentionCall& call) {
  const at::Tensor k = ops::with_aligned_rows(call.k), v = ops::with_aligned_rows(call.v);
  const Side side(selection_of(plan, branch).kv_blocks, plan.kv_order, call.kv_layout, k.device());
  const int64_t batch = k.size(0), heads = k.size(1), dim = k.size(3);
  LinearStates out;
  out.states = at::empty({batch, heads, side.blocks.blocks, dim * dim}, k.options());
  out.totals = at::empty({batch, heads, side.blocks.blocks, dim}, k.options().dtype(at::kFloat));
  kernels::LinearStatesArgs args;
  args.batch = batch, args.heads = heads, args.dim = dim;
  args.k = view_of(k), args.v = view_of(v);
  args.keys = side.blocks;
  args.feature = feature_of(branch.feature_map);
  args.states = out.states.mutable_data_ptr();
  args.totals = out.totals.mutable_data_ptr<float>();
  ops::run_on("linear_states", k.device(), args, &kernels::linear_states_cpu,
              FOVEA_CUDA_LAUNCHER(linear_states_cuda));
  return out;
}

LinearStates skipped_linear_states(const AttentionPlan& plan, const LinearBranch& branch,
                                   const LinearStates& keys) {
  const at::Tensor classes = selection_of(plan, branch).classes.contiguous();
  const at::Tensor& states = keys.states;
  kernels::LinearTakenArgs args;
  args.batch = states.size(0), args.heads = states.size(1), args.dim = keys.totals.size(3);
  args.rows = classes.size(2), args.blocks = classes.size(3);
  args.classes = classes.const_data_ptr<uint8_t>();
  args.batch_stride = stride_of(classes, 0), args.head_stride = stride_of(classes, 1);
  args.taken = block_class::skip;
  args.totals = keys.totals.const_data_ptr<float>();
  const at::Tensor factors =
      at::empty({args.batch * args.heads, args.rows, args.blocks}, states.options());
  const at::Tensor totals =
      at::empty({args.batch, args.heads, args.rows, args.dim}, keys.totals.options());
  args.factors = factors.mutable_data_ptr(), args.sums = totals.mutable_data_ptr<float>();
  ops::run_on("linear_taken", states.device(), args, &kernels::linear_taken_cpu,
              FOVEA_CUDA_LAUNCHER(linear_taken_cuda));
  // Ones and zeros are exact, and sums are fp32 until they are stored.
  const at::Tensor sums = at::bmm(factors, states.flatten(0, 1));
  return {sums.unflatten(0, {args.batch, args.heads}), totals};
}

bool has_linear_kernel(const AttentionPlan& plan, const LinearBranch& branch,
                       const AttentionCall& call) {
  const Selection* selection = complemented(plan, branch);
  if (selection == nullptr || !selection->classes.defined() || !selection->predicates.empty()) {
    return false;
  }
  const int64_t dim = call.q.size(3);
  const auto is_bf16 = [](const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; };
  const bool fits = is_bf16(call.q) && is_bf16(call.k) && is_bf16(call.v) &&
                    (dim == 64 || dim == 128) && call.v.size(3) == dim &&
                    call.k.size(1) == call.q.size(1) && call.q.numel() > 0 && call.k.numel() > 0 &&
                    call.q.size(0) * call.q.size(1) <= kMostHeads;
  return fits && (call.q.is_cpu() || (call.q.is_cuda() && ops::kHasCudaKernels)) &&
         is_taken(selection->q_blocks, plan.q_order, call.q_layout) &&
         is_taken(selection->kv_blocks, plan.kv_order, call.kv_layout) &&
         !want_gradient({call.q, call.k, call.v, branch.proj_weight, branch.proj_bias});
}

at::Tensor linear_result(const AttentionPlan& plan, const LinearBranch& branch,
                         const AttentionCall& call, const LinearStates& sums,
                         const at::Tensor& added) {
  const at::Device device = call.q.device();
  const Side queries(selection_of(plan, branch).q_blocks, plan.q_order, call.q_layout, device);
  const at::Tensor states = sums.states.contiguous(), totals = sums.totals.contiguous();
  const at::Tensor q = ops::with_aligned_rows(call.q);
  const at::Tensor out =
      at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
  kernels::LinearOutArgs args;
  args.batch = q.size(0), args.heads = q.size(1), args.dim = q.size(3);
  args.q = view_of(q);
  args.queries = queries.blocks;
  args.feature = feature_of(branch.feature_map);
  args.states = states.const_data_ptr();
  args.totals = totals.const_data_ptr<float>();
  args.epsilon = static_cast<float>(branch.epsilon);
  at::Tensor weight, bias, more;
  if (branch.proj_weight.defined()) {
    weight = branch.proj_weight.to(q.scalar_type()).contiguous();
    args.weight = weight.const_data_ptr();
  }
  if (branch.proj_bias.defined()) {
    const bool is_half = branch.proj_bias.scalar_type() == at::kBFloat16;
    bias = (is_half ? branch.proj_bias : branch.proj_bias.to(at::kFloat)).contiguous();
    args.bias = bias.const_data_ptr();
    args.bias_type = ops::kernel_dtype(bias.scalar_type());
  }
  if (added.defined()) {
    more = ops::with_aligned_rows(added);
    args.added = view_of(more);
  }
  args.out = written_view_of(out);
  ops::run_on("linear_out", device, args, &kernels::linear_out_cpu,
              FOVEA_CUDA_LAUNCHER(linear_out_cuda));
  return out;
}

at::Tensor run_linear_kernel(const AttentionPlan& plan, const LinearBranch& branch,
                             const AttentionCall& call, const at::Tensor& added) {
  const LinearStates keys = linear_states_of_keys(plan, branch, call);
  return linear_result(plan, branch, call, skipped_linear_states(plan, branch, keys), added);
}

const LinearBranch* linear_to_add(const AttentionPlan& plan, const AttentionCall& call) {
  const auto has_weight = [](const at::Tensor& weight) { return weight.defined(); };
  if (plan.branches.size() != 2 || plan.num_groups() != 2 ||
      std::any_of(plan.group_weights.begin(), plan.group_weights.end(), has_weight) ||
      !std::holds_alternative<SoftmaxBranch>(plan.branches[0].kind) || want_gradient({call.bias})) {
    return nullptr;
  }
  const auto* linear = std::get_if<LinearBranch>(&plan.branches[1].kind);
  return linear != nullptr && has_linear_kernel(plan, *linear, call) ? linear : nullptr;
}

}  // namespace fovea
