#include "core/attention/executors/cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/block_linear.h"
#include "core/attention/executors/cpu_pieces.h"
#include "core/attention/executors/cpu_softmax.h"

#include "core/attention/executors/quantized.h"
#include "core/check.h"
#include "core/ops/product.h"
#include "core/ops/widened.h"
#include "kernels/common/amx.h"

namespace fovea {
namespace {

using ops::widened;

// Lists count positions in 32 bits.
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max() - kMaxCpuChannels;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Per branch: of a softmax the lists of its keys, its summaries' behind them.
struct CpuLists : LoweredPlan {
  std::vector<std::shared_ptr<const SoftmaxLists>> branches;
};

bool has_padding(const TokenLayout& layout) {
  for (const at::Tensor& length : layout.valid_len()) {
    if (length.defined()) return true;
  }
  return false;
}

// Whether the kernel's result is the plan's, with nothing to merge or to weigh.
bool is_one_softmax(const AttentionPlan& plan) {
  const auto* softmax = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
  const bool weighted = !plan.group_weights.empty() && plan.group_weights[0].defined();
  return plan.branches.size() == 1 && softmax != nullptr && !weighted;
}

// Whether heads that share keys have blocks of their own, and so scales of their own.
bool splits_keys(const SoftmaxBranch& branch, const AttentionCall& call) {
  if (branch.precision.is_storage() || call.k.size(1) == call.q.size(1)) return false;
  const BlockAxis& blocks = branch.selection.kv_blocks;
  return blocks.num_blocks() > 0 && blocks.offsets(at::kCPU).size(1) > 1;
}

// Heads of the keys: blocks that are pooled or quantized may be those of heads that share keys.
int64_t key_heads(const SoftmaxBranch& branch, const AttentionCall& call) {
  const Selection& selection = branch.selection;
  if (splits_keys(branch, call)) return call.q.size(1);
  if (selection.summaries.empty()) return call.k.size(1);
  return std::max(call.k.size(1), selection.kv_blocks.offsets(at::kCPU).size(1));
}

// bool [batch, 1, len, 1] or undefined: all are valid.
at::Tensor valid_tokens(const TokenLayout& layout) {
  return has_padding(layout) ? layout.valid_mask().transpose(2, 3) : at::Tensor();
}

std::shared_ptr<const SoftmaxLists> make_lists(const AttentionPlan& plan,
                                               const SoftmaxBranch& branch,
                                               const AttentionCall& call) {
  auto out = std::make_shared<SoftmaxLists>();
  const int64_t items = lists_differ(plan, branch) ? call.q.size(0) : 1;
  for (int64_t item = 0; item < items; ++item) {
    out->items.push_back(lower_with_summaries(plan, branch, call, item));
  }
  const auto rows = [](const TokenOrder& order, const TokenLayout& layout) {
    if (order.is_identity()) return at::Tensor();
    return order.rows(layout, at::kCPU).to(at::kInt).contiguous();
  };
  out->q_rows = rows(plan.q_order, call.q_layout);
  if (!branch.keys) {
    out->kv_rows = rows(plan.kv_order, call.kv_layout);
    if (out->kv_rows.defined()) {
      out->kv_rows = per_head(out->kv_rows, key_heads(branch, call)).contiguous();
    }
  }
  return out;
}

// Valid tokens of each item, fp32 [batch or 1, 1, 1, 1].
at::Tensor tokens_of(const TokenLayout& layout, const at::Tensor& x) {
  const auto options = x.options().dtype(at::kFloat);
  if (!has_padding(layout)) return at::full({1, 1, 1, 1}, x.size(2), options);
  return layout.valid_mask().to(at::kFloat).sum(3, /*keepdim=*/true).clamp_min(1);
}

// Whether an order leaves padding at the end of its segment.
bool keeps_padding_last(const TokenOrder& order, const TokenLayout& layout) {
  if (order.is_identity()) return true;
  if (order.kind() == TokenOrder::Kind::index) return false;
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    const bool is_grid = layout.segments()[i].kind == Segment::Kind::grid;
    if (is_grid && layout.valid_len()[i].defined()) return false;
  }
  return true;
}

// Whether no block of keys has positions of two segments.
bool keeps_segments_apart(const Selection& selection, const TokenLayout& layout) {
  if (!selection.classes.defined()) return true;
  const at::Tensor offsets = selection.kv_blocks.offsets(at::kCPU);
  int64_t end = 0;
  for (const Segment& segment : layout.segments()) {
    end += segment.capacity;
    if (!offsets.eq(end).any(2).all().item<bool>()) return false;
  }
  return true;
}

// The call's own keys. Where an order or blocks scatter padding, hidden keys are told one by one,
// and hold numbers.
void take_own_keys(SoftmaxInputs& inputs, const AttentionPlan& plan, const AttentionCall& call,
                   const Selection& selection) {
  inputs.k = call.k;
  inputs.v = call.v;
  inputs.bias = call.bias;
  if (!has_padding(call.kv_layout)) return;
  if (keeps_padding_last(plan.kv_order, call.kv_layout) &&
      keeps_segments_apart(selection, call.kv_layout)) {
    inputs.padding = call.kv_layout;
    return;
  }
  const at::Tensor invalid = call.kv_layout.valid_mask().logical_not();  // [batch, 1, 1, kv_len]
  inputs.k = call.k.masked_fill(invalid.transpose(2, 3), 0);
  inputs.v = call.v.masked_fill(invalid.transpose(2, 3), 0);
  inputs.key_bias = at::zeros(invalid.sizes(), call.q.options().dtype(at::kFloat))
                        .masked_fill(invalid, -kInfinity)
                        .squeeze(2);
}

// The pooled keys of each summary behind the call's own, and what their logits get.
void append_summaries(SoftmaxInputs& inputs, const AttentionPlan& plan, const SoftmaxBranch& branch,
                      const AttentionCall& call) {
  const Selection& selection = branch.selection;
  const int64_t batch = call.q.size(0), heads = key_heads(branch, call), keys = call.k.size(2);
  const std::vector<int64_t> places = summary_places(selection, keys);
  const KeyPieces pooled = pool_levels(plan, call, selection);
  std::vector<at::Tensor> bias;
  const auto add_bias = [&](const at::Tensor& x) {
    bias.push_back(x.expand({batch, heads, x.size(2)}));
  };
  const auto zeros = [&](int64_t count) {
    return at::zeros({1, 1, count}, call.q.options().dtype(at::kFloat));
  };
  add_bias(inputs.key_bias.defined() ? inputs.key_bias : zeros(keys));
  add_bias(zeros(places[0] - keys));
  for (size_t i = 0; i < selection.summaries.size(); ++i) {
    const at::Tensor count =
        pooled.count.slice(2, places[i] - places[0], places[i + 1] - places[0]);
    const at::Tensor weight =
        selection.summaries[i].log_count ? ops::log(count) : at::zeros_like(count);
    add_bias(weight.masked_fill(count.eq(0), -kInfinity));
  }
  inputs.k = ops::spread_heads(inputs.k, heads);
  inputs.v = ops::spread_heads(inputs.v, heads);
  inputs.more_k = pooled.k;
  inputs.more_v = pooled.v;
  inputs.more_begin = places[0];
  inputs.key_bias = per_head(at::cat(bias, 2), call.q.size(1));
  if (!inputs.bias.defined()) return;
  std::vector<int64_t> sizes = inputs.bias.sizes().vec();
  sizes[3] = keys;
  inputs.bias = at::constant_pad_nd(inputs.bias.expand(sizes), {0, places.back() - keys}, 0);
}

// Dense plans run where they are faster. What the processor has decides, not a stopwatch: equal
// machines give equal bits, in every run.
std::optional<std::string> why_not_dense(const AttentionCall& call) {
  if (call.bias.defined()) return "leaves dense plans with a bias to sdpa";
  const at::ScalarType dtype = call.q.scalar_type();
  static const bool bf16 = kernels::has_amx(kernels::DType::bf16);
  static const bool fp16 = kernels::has_amx(kernels::DType::f16);
  const bool is_faster_there = (dtype == at::kBFloat16 && bf16) || (dtype == at::kHalf && fp16);
  if (!is_faster_there) return std::nullopt;
  return fovea::str("leaves dense plans in ", dtype, " to sdpa, which has AMX here");
}

bool is_int8(const Quantized& how) { return how.format == NumberFormat::int8; }

// q and k as 8-bit integers, without the keys' mean where there is one. They get their gradients in
// fp32, as if nothing had been rounded.
void take_integers(SoftmaxInputs& inputs, const Precision& precision, const OperandSide& q_side,
                   const OperandSide& kv_side, const at::Tensor& mean) {
  at::Tensor k = inputs.k.detach();
  const at::Tensor valid = valid_tokens(kv_side.layout);
  const at::Tensor lost = mean.defined() ? mean.detach() : mean;
  if (lost.defined() && valid.defined()) k = at::where(valid, k.to(at::kFloat), lost);
  inputs.q_int8 = integer_rows(inputs.q.detach(), precision.q, q_side, at::Tensor());
  inputs.k_int8 = integer_rows(k, precision.k, kv_side, lost);
  const bool differentiates = inputs.q.requires_grad() || inputs.k.requires_grad();
  if (!c10::GradMode::is_enabled() || !differentiates) return;
  inputs.q = inputs.q.to(at::kFloat);
  inputs.k = inputs.k.to(at::kFloat);
  if (mean.defined()) inputs.k = inputs.k - mean;
}

// Takes the inputs' numbers for those of the branch. Gradients pass the rounding.
void quantize_inputs(SoftmaxInputs& inputs, const AttentionPlan& plan, const SoftmaxBranch& branch,
                     const AttentionCall& call) {
  const Precision& precision = branch.precision;
  const OperandSide q_side{plan.q_order, call.q_layout, branch.selection.q_blocks};
  const OperandSide kv_side{plan.kv_order, call.kv_layout, branch.selection.kv_blocks};
  // Padding may hold anything; it has no part in a scale.
  const auto without_padding = [](const at::Tensor& x, const TokenLayout& layout) {
    const at::Tensor valid = valid_tokens(layout);
    return valid.defined() ? x.masked_fill(valid.logical_not(), 0) : x;
  };
  inputs.q = without_padding(inputs.q, call.q_layout);
  inputs.k = without_padding(inputs.k, call.kv_layout);
  inputs.v = without_padding(inputs.v, call.kv_layout);
  if (splits_keys(branch, call)) {
    inputs.k = per_head(inputs.k, call.q.size(1));
    inputs.v = per_head(inputs.v, call.q.size(1));
  }
  at::Tensor mean;
  if (precision.smooth_k) {
    mean = inputs.k.sum(2, /*keepdim=*/true, at::kFloat) / tokens_of(call.kv_layout, inputs.k);
    inputs.row_bias =
        at::matmul(inputs.q.to(at::kFloat), per_head(mean, call.q.size(1)).transpose(2, 3))
            .squeeze(3) *
        inputs.sm_scale;
  }
  if (is_int8(precision.q) && is_int8(precision.k)) {
    take_integers(inputs, precision, q_side, kv_side, mean);
  } else {
    inputs.q = quantized_operand(inputs.q.to(at::kFloat), precision.q, q_side);
    const at::Tensor k = inputs.k.to(at::kFloat);
    inputs.k = quantized_operand(mean.defined() ? k - mean : k, precision.k, kv_side);
    inputs.v = inputs.v.to(at::kFloat);
  }
  if (precision.v.format != NumberFormat::storage) {
    inputs.v = quantized_operand(inputs.v.to(at::kFloat), precision.v, kv_side);
  }
  inputs.p = precision.p;
  if (precision.p.format == NumberFormat::storage) return;
  inputs.v = inputs.v.to(at::kFloat);
  const at::Tensor valid = valid_tokens(call.q_layout);
  if (valid.defined()) inputs.counted = valid.flatten(1).to(at::kByte).contiguous();
}

}  // namespace

std::optional<std::string> CpuExecutor::why_not(const AttentionPlan& plan,
                                                const AttentionCall& call) const {
  if (!call.q.is_cpu()) return "runs on the CPU";
  if (plan.is_dense() && !call.needs_lse) {
    if (const auto reason = why_not_dense(call)) return reason;
  }
  const at::ScalarType dtype = call.q.scalar_type();
  if (dtype != at::kFloat && dtype != at::kHalf && dtype != at::kBFloat16) {
    return fovea::str("computes in fp32, the inputs are ", dtype);
  }
  if (call.q.size(3) > kMaxCpuChannels || call.v.size(3) > kMaxCpuChannels) {
    return fovea::str("takes up to ", kMaxCpuChannels, " channels a head");
  }
  if (std::max(call.q.size(2), call.k.size(2)) > kMaxTokens) {
    return fovea::str("takes up to ", kMaxTokens, " tokens");
  }
  for (const Branch& branch : plan.branches) {
    if (const auto* linear = std::get_if<LinearBranch>(&branch.kind)) {
      if (const auto reason = why_not_block_linear(plan, *linear)) return reason;
    }
  }
  return std::nullopt;
}

std::shared_ptr<const LoweredPlan> CpuExecutor::lower(const AttentionPlan& plan,
                                                      const AttentionCall& call) const {
  auto out = std::make_shared<CpuLists>();
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    out->branches.push_back(softmax != nullptr ? make_lists(plan, *softmax, call) : nullptr);
  }
  return out;
}

Partial CpuExecutor::run_softmax(const AttentionPlan& plan, const SoftmaxBranch& branch,
                                 const AttentionCall& call,
                                 const std::shared_ptr<const SoftmaxLists>& lists) {
  SoftmaxInputs inputs;
  if (branch.keys) {
    inputs.k = branch.keys->k;
    inputs.v = branch.keys->v;
    inputs.key_bias = branch.keys->bias;
  } else {
    take_own_keys(inputs, plan, call, branch.selection);
  }
  // What is merged is rounded once, at the end.
  const at::ScalarType dtype = is_one_softmax(plan) ? call.q.scalar_type() : at::kFloat;
  inputs.q = call.q.to(dtype);
  inputs.k = inputs.k.to(dtype);
  inputs.v = inputs.v.to(dtype);
  if (!branch.selection.summaries.empty()) append_summaries(inputs, plan, branch, call);
  inputs.sm_scale = call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
  if (!branch.precision.is_storage()) quantize_inputs(inputs, plan, branch, call);
  return cpu_softmax(inputs, lists, workspace_);
}

AttentionResult CpuExecutor::run(const AttentionPlan& plan, const AttentionCall& call,
                                 const LoweredPlan* lowered) {
  std::shared_ptr<const LoweredPlan> own;
  if (lowered == nullptr) lowered = (own = lower(plan, call)).get();
  const auto& lists = dynamic_cast<const CpuLists&>(*lowered);
  std::vector<Partial> parts;
  for (size_t i = 0; i < plan.branches.size(); ++i) {
    const auto& kind = plan.branches[i].kind;
    if (const auto* softmax = std::get_if<SoftmaxBranch>(&kind)) {
      parts.push_back(run_softmax(plan, *softmax, call, lists.branches[i]));
    } else if (const auto* linear = std::get_if<LinearBranch>(&kind)) {
      parts.push_back(run_block_linear(plan, *linear, call));
    } else if (const auto* pooled = std::get_if<PooledValuesBranch>(&kind)) {
      parts.push_back(run_pooled_values_on_cpu(plan, *pooled, call));
    } else {
      const auto& reuse = std::get<ReuseBranch>(kind);
      parts.push_back({widened(reuse.out), reuse.lse.defined() ? widened(reuse.lse) : reuse.lse});
    }
  }
  return combine(plan, parts, call.q.scalar_type());
}

}  // namespace fovea
