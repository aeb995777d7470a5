#include "core/attention/executors/cuda.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/block_linear.h"
#include "core/attention/executors/cuda_bytes.h"
#include "core/attention/executors/cuda_gradients.h"
#include "core/attention/executors/cuda_keys.h"
#include "core/attention/executors/cuda_linear.h"
#include "core/attention/executors/cuda_views.h"
#include "core/attention/lower.h"
#include "core/check.h"
#include "core/ops/gather_rows.h"
#include "core/ops/product.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 30;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

double scale_of(const AttentionCall& call) {
  return call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
}

bool is_half(at::ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

// Whether positions matter to a branch: to one that takes all keys no order does.
bool has_positions(const Selection& selection) {
  return selection.classes.defined() || !selection.predicates.empty();
}

// int32 [batch or 1, heads or 1, len], or undefined: as they are.
at::Tensor rows_of(const TokenOrder& order, const TokenLayout& layout, at::Device device) {
  if (order.is_identity()) return {};
  return order.rows(layout, device).to(at::kInt).contiguous();
}

// Blocks where a selection has none: all queries, and each segment of the keys.
BlockAxis whole(int64_t len) { return BlockAxis::from_host({0, len}); }
BlockAxis whole_segments(const TokenLayout& layout) {
  std::vector<int64_t> ends = {0};
  for (const Segment& segment : layout.segments()) ends.push_back(ends.back() + segment.capacity);
  return BlockAxis::from_host(std::move(ends));
}

// Heads of the keys: blocks that are pooled may be those of heads that share keys, and gradients of
// keys are made block by block.
int64_t key_heads(const SoftmaxBranch& branch, const AttentionCall& call) {
  const Selection& selection = branch.selection;
  const int64_t own = branch.keys ? branch.keys->k.size(1) : call.k.size(1);
  const at::Tensor& offsets = selection.kv_blocks.device_offsets();
  const bool are_shared = selection.summaries.empty() && !wants_gradient(branch, call);
  return are_shared || !offsets.defined() ? own : std::max(own, offsets.size(1));
}

// Whether the kernel's result is the plan's, with nothing to merge or to weigh.
bool is_one_softmax(const AttentionPlan& plan) {
  const bool weighted = !plan.group_weights.empty() && plan.group_weights[0].defined();
  return plan.branches.size() == 1 && !weighted;
}

Partial nothing_seen(const SoftmaxBranch& branch, const AttentionCall& call) {
  const int64_t batch = call.q.size(0), heads = call.q.size(1), q_len = call.q.size(2);
  Partial out;
  out.out = at::zeros({batch, heads, q_len, call.v.size(3)}, call.q.options());
  out.lse = at::full({batch, heads, q_len}, -kInfinity, call.q.options().dtype(at::kFloat));
  // Products of no keys or no queries: gradients of all that the result would be of.
  if (wants_gradient(branch, call)) {
    const at::Tensor k = per_head(branch.keys ? branch.keys->k : call.k, heads).to(call.q.dtype());
    const at::Tensor v = per_head(branch.keys ? branch.keys->v : call.v, heads).to(call.q.dtype());
    out.out = at::matmul(at::matmul(call.q, k.transpose(2, 3)), v);
  }
  return out;
}

bool is_bytes(const SoftmaxBranch& branch) { return !branch.precision.is_storage(); }

std::optional<std::string> why_not_softmax(const SoftmaxBranch& branch, const CudaBackend& backend,
                                           const AttentionCall& call) {
  if (is_bytes(branch)) {
    if (backend.run_bytes == nullptr) {
      return "computes in bf16 or fp16, the plan asks for " + branch.precision.describe();
    }
    if (const auto reason = why_not_bytes(branch.precision, call)) return reason;
    if (wants_gradient(branch, call)) return "gives no gradients in 8-bit numbers";
  }
  if (branch.selection.summaries.size() > kernels::kMaxSummaries) {
    return str("takes up to ", kernels::kMaxSummaries, " summaries");
  }
  return why_not_cut(branch.selection.predicates);
}

}  // namespace

// What of a softmax branch can be made ready.
struct CudaExecutor::Softmax {
  at::Tensor q_rows, kv_rows;  // int32, the latter of the call's own keys; undefined: as they are
  at::Tensor out_rows;         // q_rows, all of them rows that are there
  BlockAxis q_blocks, kv_blocks;
  std::optional<PaddedKeys> padded;                   // of kv_blocks, kv_rows has its order then
  kernels::AttentionTile tile;                        // of lists of spans
  std::optional<kernels::AttentionTile> packed_tile;  // of packed ones, where they are better
  bool is_trimmed = false;  // padding is at the end of blocks, which it shortens
  bool is_hidden = false;   // padding is hidden key by key
  // None where they are those of each call, or not needed. Columns are for gradients.
  std::optional<DeviceLists> lists, columns;

  // Packed lists know no biases of keys, and gradients go by spans.
  kernels::AttentionTile list_tile(bool needs_spans) const {
    return packed_tile && !needs_spans ? *packed_tile : tile;
  }
  // Those that were made ahead, or a call's own; none where all is seen.
  std::optional<DeviceLists> lists_of(const ListsOf& of, bool has_bias, bool needs_spans,
                                      const at::Tensor& fault) const {
    if (lists && !(lists->tile.is_packed && needs_spans)) return lists;
    if (!lists && !is_trimmed && !has_bias) return std::nullopt;
    return make_lists(of, list_tile(needs_spans), fault);
  }

  ListsOf of(const SoftmaxBranch& branch, const AttentionCall& call) const {
    const int64_t keys = branch.keys ? branch.keys->k.size(2) : call.k.size(2);
    return {call,
            branch.selection,
            q_blocks,
            padded ? padded->blocks : kv_blocks,
            padded && keys > 0 ? padded->len : keys,
            padded ? padded->valid : at::Tensor(),
            q_rows,
            kv_rows};
  }
};

struct CudaExecutor::Lowered : LoweredPlan {
  std::vector<std::shared_ptr<const Softmax>> branches;  // null where it is no softmax
};

// Tensors of one launch.
struct CudaExecutor::Inputs {
  at::Tensor q, k, v;
  at::Tensor more_k, more_v;
  int64_t more_begin = 0;
  at::Tensor key_bias;  // fp32 [batch or 1, heads or 1, keys from bias_begin on], or undefined
  int64_t bias_begin = 0;
  std::optional<ByteOperands> bytes;  // instead of q, k and v

  void take_given(const SoftmaxBranch& branch, const AttentionCall& call) {
    const GivenKeys& keys = *branch.keys;
    const int64_t heads = key_heads(branch, call);
    k = ops::spread_heads(keys.k.to(call.q.scalar_type()), heads);
    v = ops::spread_heads(keys.v.to(call.q.scalar_type()), heads);
    if (keys.bias.defined()) key_bias = keys.bias.to(at::kFloat);
  }
  // The call's own, in the order of the plan and without what padding holds.
  void take_own(const Softmax& softmax, const SoftmaxBranch& branch, const AttentionCall& call,
                const at::Tensor& fault);
  void add_summaries(const SoftmaxBranch& branch, const AttentionCall& call, const at::Tensor& rows,
                     const at::Tensor& fault);
  // The call's own in 8-bit numbers.
  void take_bytes(const Softmax& softmax, const SoftmaxBranch& branch, const AttentionCall& call,
                  const at::Tensor& fault);
  bool has_more() const { return more_k.defined() && more_k.size(2) > 0; }
  // All but results and lists; as they point to it, aligned.
  kernels::CudaAttentionArgs align(const AttentionCall& call, int64_t kv_len);
};

void CudaExecutor::Inputs::take_own(const Softmax& softmax, const SoftmaxBranch& branch,
                                    const AttentionCall& call, const at::Tensor& fault) {
  const int64_t heads = key_heads(branch, call);
  const bool is_padded = has_padding(call.kv_layout);
  const at::Tensor rows =
      is_padded ? rows_without_padding(softmax.kv_rows, call.kv_layout) : softmax.kv_rows;
  // In gradients a weight of 0 does not keep NaN in keys out either.
  const bool moves = softmax.kv_rows.defined() || softmax.is_hidden || heads != call.k.size(1) ||
                     (is_padded && wants_gradient(branch, call));
  const at::Tensor own = rows.defined() ? per_head(rows, heads).contiguous() : rows;
  std::vector<ops::RowsToGather> parts;
  if (softmax.q_rows.defined()) parts.push_back({call.q, softmax.q_rows, call.q.size(1)});
  // A weight of 0 does not keep NaN in values out, which padding may hold.
  if (moves || is_padded) parts.push_back({call.v, own, heads});
  if (moves) parts.push_back({call.k, own, heads});
  const std::vector<at::Tensor> gathered = ops::gather_rows(parts, fault);
  size_t next = 0;
  q = softmax.q_rows.defined() ? gathered[next++] : call.q;
  v = moves || is_padded ? gathered[next++] : call.v;
  k = moves ? gathered[next] : call.k;
  key_bias =
      bias_of_keys(call.bias, softmax.kv_rows, softmax.is_hidden ? rows : at::Tensor(), call);
  if (!branch.selection.summaries.empty()) add_summaries(branch, call, rows, fault);
}

void CudaExecutor::Inputs::take_bytes(const Softmax& softmax, const SoftmaxBranch& branch,
                                      const AttentionCall& call, const at::Tensor& fault) {
  const auto without_padding = [](const at::Tensor& rows, const TokenLayout& layout) {
    return has_padding(layout) ? rows_without_padding(rows, layout) : rows;
  };
  const at::Tensor rows = without_padding(softmax.kv_rows, call.kv_layout);
  key_bias =
      bias_of_keys(call.bias, softmax.kv_rows, softmax.is_hidden ? rows : at::Tensor(), call);
  const bool is_listed = softmax.lists || softmax.is_trimmed || key_bias.defined();
  bytes = make_byte_operands(
      {call, branch.precision, softmax.q_blocks,
       softmax.padded ? softmax.padded->blocks : softmax.kv_blocks,
       without_padding(softmax.q_rows, call.q_layout), rows, is_listed, scale_of(call)},
      fault);
}

void CudaExecutor::Inputs::add_summaries(const SoftmaxBranch& branch, const AttentionCall& call,
                                         const at::Tensor& rows, const at::Tensor& fault) {
  const Selection& selection = branch.selection;
  const int64_t keys = call.k.size(2), batch = call.q.size(0), heads = call.q.size(1);
  const std::vector<int64_t> places = summary_places(selection, keys);
  more_begin = places[0];
  PooledOf of{.tensors = {call.k, call.v},
              .rows = rows,
              .blocks = selection.kv_blocks,
              .summaries = summary_keys(selection, keys),
              .places = places.back() - places[0],
              .heads = key_heads(branch, call)};
  for (kernels::SummaryKeys& level : of.summaries) level.begin -= static_cast<int32_t>(places[0]);
  const DevicePools pools = pool_on_device(of, fault);
  more_k = pools.mean[0].to(call.k.scalar_type());
  more_v = pools.mean[1].to(call.k.scalar_type());
  std::vector<at::Tensor> bias;
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    const at::Tensor count = pools.count.slice(2, places[i] - places[0], places[i + 1] - places[0]);
    // Means of nothing are hidden: ln 0.
    bias.push_back(selection.summaries[i].log_count ? count.log()
                                                    : count.gt(0).to(at::kFloat).log());
  }
  const at::Tensor more = per_head(at::cat(bias, 2), heads);
  if (!key_bias.defined()) {
    key_bias = more, bias_begin = more_begin;
    return;
  }
  const at::Tensor gap = at::zeros({1, 1, more_begin - keys}, more.options());
  const auto whole = [&](const at::Tensor& x) { return x.expand({batch, heads, x.size(2)}); };
  key_bias = at::cat({whole(key_bias), whole(gap), whole(more)}, 2);
}

std::optional<std::string> CudaExecutor::why_not(const AttentionPlan& plan,
                                                 const AttentionCall& call) const {
  if (const auto reason = backend_.why_not(call)) return reason;
  if (!is_half(call.q.scalar_type())) {
    return fovea::str("computes in bf16 and fp16, the inputs are ", call.q.scalar_type());
  }
  if (call.v.size(3) != call.q.size(3)) return "takes values of as many channels as keys";
  if (call.bias.defined() && call.bias.size(2) != 1) {
    return "takes no bias that differs from query to query";
  }
  if (const auto reason = why_not_gradients(backend_, plan, call)) return reason;
  if (std::max(call.q.size(2), call.k.size(2)) > kMaxTokens) {
    return str("takes up to ", kMaxTokens, " tokens");
  }
  if (!(scale_of(call) > 0)) return "takes scales above 0";
  for (const Branch& branch : plan.branches) {
    if (const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind)) {
      if (const auto reason = why_not_softmax(*softmax, backend_, call)) return reason;
    } else if (const auto* linear = std::get_if<LinearBranch>(&branch.kind)) {
      if (const auto reason = why_not_linear_on_device(plan, *linear, call)) return reason;
    }
  }
  return std::nullopt;
}

std::shared_ptr<const CudaExecutor::Softmax> CudaExecutor::lower_softmax(
    const AttentionPlan& plan, const SoftmaxBranch& branch, const AttentionCall& call) const {
  const Selection& selection = branch.selection;
  const at::Device device = call.q.device();
  const bool in_order = has_positions(selection) || has_block_scales(branch.precision);
  auto out = std::make_shared<Softmax>();
  if (in_order) {
    out->q_rows = rows_of(plan.q_order, call.q_layout, device);
    if (!branch.keys) out->kv_rows = rows_of(plan.kv_order, call.kv_layout, device);
  }
  if (selection.classes.defined()) {
    out->q_blocks = selection.q_blocks, out->kv_blocks = selection.kv_blocks;
  } else if (in_order) {
    // Scales may be of blocks that nothing else asks for.
    const bool has_q = selection.q_blocks.num_blocks() > 0;
    const bool has_kv = selection.kv_blocks.num_blocks() > 0;
    out->q_blocks = has_q ? selection.q_blocks : default_blocks(call.q_layout);
    out->kv_blocks = has_kv ? selection.kv_blocks : default_blocks(call.kv_layout);
  } else {
    const bool is_whole = is_bytes(branch) && !has_padding(call.kv_layout);
    out->q_blocks = whole(call.q.size(2));
    out->kv_blocks = branch.keys ? whole(branch.keys->k.size(2))
                     : is_whole  ? whole(call.k.size(2))
                                 : whole_segments(call.kv_layout);
  }
  if (!branch.keys && has_padding(call.kv_layout)) {
    const TokenOrder order = in_order ? plan.kv_order : TokenOrder();
    out->is_trimmed =
        selection.predicates.empty() && keeps_padding_last(order, out->kv_blocks, call.kv_layout);
    out->is_hidden = !out->is_trimmed;
  }
  if (is_bytes(branch)) {
    out->padded = pad_blocks(out->kv_blocks, out->kv_rows, call);
    if (out->padded) out->kv_rows = out->padded->rows;
  }
  const ListsOf of = out->of(branch, call);
  out->tile = is_bytes(branch) ? kernels::kEightBitTile : tile_of(of, backend_.tile);
  if (!is_bytes(branch) && backend_.packed_tile && are_better_packed(of, out->tile)) {
    out->packed_tile = backend_.packed_tile();
  }
  if ((in_order || out->padded) && !out->is_trimmed && of.kv_len > 0) {
    const bool has_bias = branch.keys ? branch.keys->bias.defined() : call.bias.defined();
    const bool needs_spans = has_bias || out->is_hidden || wants_gradient(branch, call);
    out->lists = make_lists(of, out->list_tile(needs_spans), fault_.begin(device));
    if (!selection.predicates.empty()) cut_pairs(of, *out->lists);
    if (wants_gradient(branch, call)) {
      const kernels::AttentionTile tile = tile_of(of, backend_.backward.column_tile);
      out->columns = make_columns(of, tile, fault_.begin(device));
    }
  }
  out->out_rows = out->q_rows;
  if (plan.q_order.kind() == TokenOrder::Kind::index && out->q_rows.defined()) {
    // Nobody has looked at them yet, and the kernel writes there.
    out->out_rows = out->q_rows.clamp(0, std::max<int64_t>(call.q.size(2) - 1, 0));
  }
  return out;
}

std::shared_ptr<const LoweredPlan> CudaExecutor::lower(const AttentionPlan& plan,
                                                       const AttentionCall& call) const {
  const c10::DeviceGuard guard(call.q.device());
  auto out = std::make_shared<Lowered>();
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    out->branches.push_back(softmax == nullptr ? nullptr : lower_softmax(plan, *softmax, call));
  }
  return out;
}

kernels::CudaAttentionArgs CudaExecutor::Inputs::align(const AttentionCall& call, int64_t kv_len) {
  kernels::CudaAttentionArgs args;
  args.batch = call.q.size(0), args.heads = call.q.size(1), args.q_len = call.q.size(2);
  args.dim = call.q.size(3), args.kv_len = kv_len;
  args.kv_heads = (bytes ? bytes->k : k).size(1);
  if (!bytes) {
    for (at::Tensor* x : {&q, &k, &v}) *x = ops::with_aligned_rows(*x);
    args.q = view_of(q), args.k = view_of(k), args.v = view_of(v);
  }
  if (has_more()) {
    args.more = {view_of(more_k), view_of(more_v), static_cast<int32_t>(more_begin),
                 static_cast<int32_t>(more_k.size(2))};
  }
  if (key_bias.defined()) {
    key_bias = key_bias.contiguous();
    args.key_bias = {key_bias.const_data_ptr<float>(), stride_of(key_bias, 0),
                     stride_of(key_bias, 1), static_cast<int32_t>(bias_begin)};
  }
  args.sm_scale = scale_of(call);
  return args;
}

Partial CudaExecutor::run_softmax(const Softmax& softmax, const SoftmaxBranch& branch,
                                  const AttentionCall& call) {
  ListsOf of = softmax.of(branch, call);
  if (of.kv_len == 0 || call.q.numel() == 0) return nothing_seen(branch, call);
  const at::Tensor& fault = fault_.begin(call.q.device());
  Inputs in;
  if (is_bytes(branch)) {
    in.take_bytes(softmax, branch, call, fault);
  } else if (branch.keys) {
    in.take_given(branch, call);
    in.q = softmax.q_rows.defined()
               ? ops::gather_rows({{call.q, softmax.q_rows, call.q.size(1)}}, fault)[0]
               : call.q;
  } else {
    in.take_own(softmax, branch, call, fault);
  }
  const bool differentiates = wants_gradient(branch, call);
  const bool has_bias = in.key_bias.defined();
  if (softmax.is_trimmed) {
    of.kv_valid = valid_of_blocks(softmax.kv_blocks, call.kv_layout, call.q.device());
  }
  const std::optional<DeviceLists> lists =
      softmax.lists_of(of, has_bias, has_bias || differentiates, fault);
  std::optional<DeviceLists> columns;
  if (lists && differentiates) {
    columns = softmax.columns;
    if (!columns) columns = make_columns(of, tile_of(of, backend_.backward.column_tile), fault);
  }
  kernels::CudaAttentionArgs args = in.align(call, of.kv_len);
  // Tokens before heads, as projections want it.
  const int64_t step = args.heads * args.dim;
  const at::Tensor out =
      at::empty_strided({args.batch, args.heads, args.q_len, args.dim},
                        {args.q_len * step, args.dim, step, 1}, call.q.options());
  const at::Tensor lse =
      at::empty({args.batch, args.heads, args.q_len}, call.q.options().dtype(at::kFloat));
  args.out = written_view_of(out), args.lse = lse.mutable_data_ptr<float>();
  args.out_order = order_of(softmax.out_rows);
  args.tile = lists ? lists->tile : softmax.tile;
  at::Tensor next_tile;
  if (lists) {
    args.lists = lists->view();
    // Of this call alone: two may run at a time, in two streams.
    next_tile = at::zeros({1}, fault.options());
    args.next_tile = next_tile.mutable_data_ptr<int32_t>();
  }
  const kernels::CudaTarget target =
      call.q.is_cuda() ? ops::cuda_target(call.q.device()) : kernels::CudaTarget{};
  const kernels::Status status =
      in.bytes ? backend_.run_bytes(args, in.bytes->view(), target) : backend_.run(args, target);
  require(ops::accepted(backend_.name, status), ErrorCode::device, backend_.name, status.message);
  if (!differentiates) return {out, lse};
  const bool has_more = in.has_more();
  return with_gradients(
      {backend_, args, in.q, in.k, in.v, has_more ? in.more_k : at::Tensor(),
       has_more ? in.more_v : at::Tensor(), in.key_bias, softmax.out_rows, lists, columns, fault},
      {out, lse});
}

Partial CudaExecutor::run_branch(const AttentionPlan& plan, size_t number,
                                 const AttentionCall& call, const Lowered& lowered) {
  const auto& kind = plan.branches[number].kind;
  if (const auto* softmax = std::get_if<SoftmaxBranch>(&kind)) {
    return run_softmax(*lowered.branches[number], *softmax, call);
  }
  if (const auto* linear = std::get_if<LinearBranch>(&kind)) {
    return run_linear_on_device(plan, *linear, call);
  }
  if (const auto* pooled = std::get_if<PooledValuesBranch>(&kind)) {
    return run_pooled_values_on_device(plan, *pooled, call, fault_.begin(call.q.device()));
  }
  const auto& reuse = std::get<ReuseBranch>(kind);
  return {ops::widened(reuse.out), reuse.lse.defined() ? ops::widened(reuse.lse) : reuse.lse};
}

AttentionResult CudaExecutor::run(const AttentionPlan& plan, const AttentionCall& call,
                                  const LoweredPlan* lowered) {
  const c10::DeviceGuard guard(call.q.device());
  fault_.begin(call.q.device());
  std::shared_ptr<const LoweredPlan> own;
  if (lowered == nullptr) lowered = (own = lower(plan, call)).get();
  if (const LinearBranch* linear = linear_to_add(plan, call)) {
    const Partial softmax = run_branch(plan, 0, call, dynamic_cast<const Lowered&>(*lowered));
    fault_.send();
    return {run_linear_kernel(plan, *linear, call, softmax.out), softmax.lse};
  }
  std::vector<Partial> parts;
  for (size_t i = 0; i < plan.branches.size(); ++i) {
    parts.push_back(run_branch(plan, i, call, dynamic_cast<const Lowered&>(*lowered)));
    // What is merged or weighed is fp32.
    if (!is_one_softmax(plan)) parts.back().out = ops::widened(parts.back().out);
  }
  AttentionResult result = combine(plan, parts, call.q.scalar_type());
  fault_.send();
  return result;
}

}  // namespace fovea
