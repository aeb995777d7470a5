#include "tests/conformance/faults.h"

#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/quantized.h"
#include "core/attention/executors/reference.h"

namespace fovea::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

AttentionResult right(const AttentionPlan& plan, const AttentionCall& call) {
  return reference_attention(plan, call);
}

SoftmaxBranch* softmax_of(AttentionPlan& plan, size_t branch = 0) {
  return branch < plan.branches.size() ? std::get_if<SoftmaxBranch>(&plan.branches[branch].kind)
                                       : nullptr;
}

double scale_of(const AttentionCall& call) {
  return call.sm_scale.value_or(1 / std::sqrt(static_cast<double>(call.q.size(3))));
}

// Faults that are right for another plan or call.
Fault changed(std::string name, std::function<void(AttentionPlan&, AttentionCall&)> change) {
  return {std::move(name),
          [change = std::move(change)](const AttentionPlan& plan, const AttentionCall& call) {
            AttentionPlan other = plan;
            AttentionCall own = call;
            change(other, own);
            return right(other, own);
          }};
}

// Faults of what is written in the end.
Fault written(std::string name,
              std::function<void(AttentionResult&, const AttentionPlan&, const AttentionCall&)> f) {
  return {std::move(name),
          [f = std::move(f)](const AttentionPlan& plan, const AttentionCall& call) {
            AttentionResult result = right(plan, call);
            f(result, plan, call);
            return result;
          }};
}

// Faults of the backward pass: results are right, their gradients those of another plan or call.
Fault changed_gradient(std::string name,
                       std::function<void(AttentionPlan&, AttentionCall&)> change) {
  return {std::move(name),
          [change = std::move(change)](const AttentionPlan& plan, const AttentionCall& call) {
            AttentionResult result = right(plan, call);
            AttentionPlan other = plan;
            AttentionCall own = call;
            change(other, own);
            const AttentionResult wrong = right(other, own);
            const auto swap = [](at::Tensor& x, const at::Tensor& from) {
              if (from.requires_grad()) x = x.detach() + (from - from.detach()).nan_to_num(0, 0, 0);
            };
            if (!result.out.requires_grad()) return result;
            swap(result.out, wrong.out);
            if (result.lse.defined()) swap(result.lse, wrong.lse);
            return result;
          }};
}

// The call's keys where `hidden`, bool [kv_len], is true are not seen.
void hide(AttentionCall& call, const at::Tensor& hidden) {
  const at::Tensor bias = at::zeros({1, 1, 1, call.k.size(2)}, call.q.options().dtype(at::kFloat))
                              .masked_fill(hidden.to(call.q.device()), -kInfinity);
  call.bias = call.bias.defined() ? call.bias + bias : bias;
}

TokenLayout with_valid_len(const TokenLayout& layout,
                           const std::function<at::Tensor(const at::Tensor&, int64_t)>& change) {
  TokenLayout out;
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    const Segment& segment = layout.segments()[i];
    at::Tensor valid = layout.valid_len()[i];
    if (valid.defined()) valid = change(valid, segment.capacity);
    const bool is_sequence = segment.kind == Segment::Kind::grid && valid.defined();
    if (segment.kind == Segment::Kind::text) {
      out.append(TokenLayout::text(segment.capacity, valid));
    } else if (is_sequence) {
      out.append(TokenLayout::sequence(segment.capacity, valid));
    } else if (segment.kind == Segment::Kind::grid) {
      out.append(TokenLayout::grid(segment.grid[0], segment.grid[1], segment.grid[2]));
    } else {
      out.append(TokenLayout::extra(segment.capacity));
    }
  }
  return out;
}

// The logits of a plan that is one softmax over own keys, for kernels that are written out.
struct Logits {
  at::Tensor s;  // fp32 [batch, heads, q_len, kv_len], -inf where not seen
  at::Tensor v;  // fp32 [batch, heads, kv_len, value_dim], 0 in padding
};

std::optional<Logits> logits_of(const AttentionPlan& plan, const AttentionCall& call) {
  const auto* branch = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
  const bool weighted = !plan.group_weights.empty() && plan.group_weights[0].defined();
  if (plan.branches.size() != 1 || branch == nullptr || branch->keys || weighted ||
      !branch->selection.summaries.empty() || !branch->precision.is_storage()) {
    return std::nullopt;
  }
  const int64_t heads = call.q.size(1);
  at::Tensor k = per_head(call.k.to(at::kFloat), heads), v = per_head(call.v, heads);
  v = v.to(at::kFloat);
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) {
    const at::Tensor padding = valid.logical_not().transpose(2, 3);
    k = k.masked_fill(padding, 0);
    v = v.masked_fill(padding, 0);
  }
  at::Tensor s = at::matmul(call.q.to(at::kFloat) * scale_of(call), k.transpose(2, 3));
  if (call.bias.defined()) s = s + call.bias.to(at::kFloat);
  return Logits{s.masked_fill(exact_pairs(plan, *branch, call).logical_not(), -kInfinity), v};
}

// How a tile of keys enters what has been added up so far.
struct Loop {
  int64_t tile = 16;
  bool rescales = true;         ///< when a later tile has a larger logit
  bool rounds_sums = false;     ///< sums are kept in bf16
  bool rounds_weights = false;  ///< to bf16 before they are added up, but not multiplied
};

AttentionResult run_loop(const AttentionPlan& plan, const AttentionCall& call, const Loop& loop) {
  const auto logits = logits_of(plan, call);
  if (!logits || logits->s.size(3) == 0) return right(plan, call);
  const auto kept = [&](const at::Tensor& x) {
    return loop.rounds_sums ? x.to(at::kBFloat16).to(at::kFloat) : x;
  };
  at::Tensor top = at::full_like(logits->s.select(3, 0).unsqueeze(3), -kInfinity);
  at::Tensor sum = at::zeros_like(top);
  at::Tensor out = at::zeros({top.size(0), top.size(1), top.size(2), logits->v.size(3)});
  for (int64_t begin = 0; begin < logits->s.size(3); begin += loop.tile) {
    const at::Tensor s = logits->s.slice(3, begin, begin + loop.tile);
    const at::Tensor larger = at::maximum(top, s.amax(3, /*keepdim=*/true));
    const at::Tensor safe = larger.masked_fill(larger.eq(-kInfinity), 0);
    const at::Tensor p = (s - safe).exp();
    const at::Tensor factor = loop.rescales ? (top - safe).exp() : at::ones_like(top);
    const at::Tensor added = loop.rounds_weights ? p.to(at::kBFloat16).to(at::kFloat) : p;
    sum = kept(sum * factor + added.sum(3, /*keepdim=*/true));
    out = kept(out * factor + at::matmul(p, logits->v.slice(2, begin, begin + loop.tile)));
    top = larger;
  }
  const at::Tensor empty = sum.eq(0);
  const at::Tensor safe = sum.masked_fill(empty, 1);
  return {(out / safe).to(call.q.scalar_type()),
          (safe.log() + top).masked_fill(empty, -kInfinity).squeeze(3)};
}

Fault looped(std::string name, const Loop& loop) {
  return {std::move(name), [loop](const AttentionPlan& plan, const AttentionCall& call) {
            return run_loop(plan, call, loop);
          }};
}

Fault fp32_only(Fault fault) {
  fault.only_fp32 = true;
  return fault;
}

void add_scale_faults(std::vector<Fault>& out) {
  out.push_back(changed("scale off by 1 %", [](AttentionPlan&, AttentionCall& call) {
    call.sm_scale = scale_of(call) * 1.01;
  }));
  out.push_back(changed("scale 1 / head_dim", [](AttentionPlan&, AttentionCall& call) {
    if (!call.sm_scale) call.sm_scale = 1 / static_cast<double>(call.q.size(3));
  }));
  out.push_back(changed("scale of the padded head_dim", [](AttentionPlan&, AttentionCall& call) {
    const int64_t padded = (call.q.size(3) + 15) / 16 * 16;
    if (!call.sm_scale) call.sm_scale = 1 / std::sqrt(static_cast<double>(padded));
  }));
  out.push_back(changed("given scale ignored",
                        [](AttentionPlan&, AttentionCall& call) { call.sm_scale.reset(); }));
  out.push_back(
      fp32_only(written("gain 1.001", [](AttentionResult& result, const auto&, const auto&) {
        result.out = (result.out.to(at::kFloat) * 1.001).to(result.out.scalar_type());
      })));
}

void add_key_faults(std::vector<Fault>& out) {
  out.push_back(changed("last ragged block of keys missing", [](auto&, AttentionCall& call) {
    const int64_t length = call.k.size(2), whole = length / 64 * 64;
    if (whole > 0) hide(call, at::arange(length).ge(whole));
  }));
  out.push_back(changed("one key of 64 dropped", [](AttentionPlan&, AttentionCall& call) {
    hide(call, at::arange(call.k.size(2)).remainder(64).eq(63));
  }));
  out.push_back(changed("one key of padding seen", [](AttentionPlan&, AttentionCall& call) {
    call.kv_layout = with_valid_len(call.kv_layout, [](const at::Tensor& valid, int64_t capacity) {
      return (valid + 1).clamp_max(capacity);
    });
  }));
  out.push_back(changed("padding seen", [](AttentionPlan&, AttentionCall& call) {
    call.kv_layout = with_valid_len(call.kv_layout, [](const at::Tensor& valid, int64_t capacity) {
      return at::full_like(valid, capacity);
    });
  }));
  out.push_back(changed("padding of the first item for all", [](auto&, AttentionCall& call) {
    call.kv_layout = with_valid_len(call.kv_layout, [](const at::Tensor& valid, int64_t) {
      return valid.slice(0, 0, 1).expand_as(valid).clone();
    });
  }));
  out.push_back(changed("key head h % kv_heads", [](AttentionPlan&, AttentionCall& call) {
    const int64_t own = call.k.size(1);
    const at::Tensor wrong = at::arange(call.q.size(1)).remainder(own);
    call.k = call.k.index_select(1, wrong);
    call.v = call.v.index_select(1, wrong);
  }));
  out.push_back(changed("keys of the first item for all", [](AttentionPlan&, AttentionCall& call) {
    call.k = call.k.slice(0, 0, 1).expand_as(call.k);
  }));
  out.push_back(changed("strides of values not read", [](AttentionPlan&, AttentionCall& call) {
    // As if tokens before heads were heads before tokens.
    const at::Tensor memory = call.v.transpose(1, 2);
    if (call.v.is_contiguous() || !memory.is_contiguous()) return;
    call.v = memory.reshape(call.v.sizes());
  }));
}

void add_map_faults(std::vector<Fault>& out) {
  const auto changed_map = [&](const char* name, std::function<void(Selection&)> change) {
    out.push_back(changed(name, [change](AttentionPlan& plan, AttentionCall&) {
      SoftmaxBranch* branch = softmax_of(plan);
      if (branch != nullptr && branch->selection.classes.defined()) change(branch->selection);
    }));
  };
  changed_map("block map transposed", [](Selection& selection) {
    if (selection.classes.size(2) == selection.classes.size(3)) {
      selection.classes = selection.classes.transpose(2, 3);
    }
  });
  changed_map("map of the first head for all",
              [](Selection& selection) { selection.classes = selection.classes.slice(1, 0, 1); });
  changed_map("map of the first item for all",
              [](Selection& selection) { selection.classes = selection.classes.slice(0, 0, 1); });
  changed_map("offsets of keys one too far", [](Selection& selection) {
    at::Tensor offsets = selection.kv_blocks.offsets(at::kCPU).clone();
    const at::Tensor inner = offsets.slice(2, 1, offsets.size(2) - 1);
    inner.copy_((inner + 1).minimum(offsets.slice(2, offsets.size(2) - 1)));
    selection.kv_blocks = BlockAxis::from_offsets(offsets, selection.kv_blocks.max_size() + 1);
  });
  changed_map("last block of a row not listed", [](Selection& selection) {
    selection.classes = selection.classes.clone();
    selection.classes.select(3, -1).fill_(block_class::skip);
  });
  changed_map("summary without ln(count)", [](Selection& selection) {
    for (Summary& summary : selection.summaries) summary.log_count = false;
  });
  changed_map("summaries taken for skipped", [](Selection& selection) {
    selection.classes =
        selection.classes.masked_fill(selection.classes.ge(block_class::first_summary), 0);
  });
  changed_map("pool of a summary ignored", [](Selection& selection) {
    for (Summary& summary : selection.summaries) summary.pool = 0;
  });
  out.push_back(changed("bits of partial blocks one too far", [](auto& plan, AttentionCall& call) {
    SoftmaxBranch* branch = softmax_of(plan);
    if (branch == nullptr || branch->selection.predicates.empty()) return;
    at::Tensor seen = exact_pairs(plan, *branch, call);
    seen = seen.expand({seen.size(0), seen.size(1), call.q.size(2), call.k.size(2)}).roll(1, 3);
    branch->selection.predicates = {StoredPredicate{seen}};
  }));
  out.push_back(changed("predicates ignored", [](AttentionPlan& plan, AttentionCall&) {
    if (SoftmaxBranch* branch = softmax_of(plan)) branch->selection.predicates.clear();
  }));
  out.push_back(changed("causal without the diagonal", [](auto& plan, AttentionCall& call) {
    SoftmaxBranch* branch = softmax_of(plan);
    if (branch == nullptr) return;
    for (Predicate& predicate : branch->selection.predicates) {
      const auto* causal = std::get_if<CausalPredicate>(&predicate);
      if (causal == nullptr || causal->in_order) continue;
      predicate = StoredPredicate{
          at::ones({call.q.size(2), call.k.size(2)}, at::kBool).tril(-1).unsqueeze(0).unsqueeze(0)};
    }
  }));
}

TokenOrder inverse(const TokenOrder& order, const TokenLayout& layout) {
  if (order.is_identity()) return order;
  return TokenOrder::index(positions_of_rows(order.rows(layout, at::kCPU)));
}

TokenOrder twice(const TokenOrder& order, const TokenLayout& layout) {
  if (order.is_identity()) return order;
  const at::Tensor rows = order.rows(layout, at::kCPU);
  return TokenOrder::index(rows.gather(2, rows));
}

void add_order_faults(std::vector<Fault>& out) {
  out.push_back(changed("order of queries twice", [](AttentionPlan& plan, AttentionCall& call) {
    plan.q_order = twice(plan.q_order, call.q_layout);
  }));
  out.push_back(changed("inverse order of keys", [](AttentionPlan& plan, AttentionCall& call) {
    plan.kv_order = inverse(plan.kv_order, call.kv_layout);
  }));
  out.push_back(changed("order of queries for keys", [](AttentionPlan& plan, AttentionCall& call) {
    if (call.q_layout.seq_len() != call.kv_layout.seq_len()) return;
    const at::Tensor rows = plan.q_order.rows(call.q_layout, at::kCPU);
    if (rows.size(1) == 1) plan.kv_order = plan.q_order;
  }));
  out.push_back(written("output left in the order", [](AttentionResult& result, const auto& plan,
                                                       const AttentionCall& call) {
    if (plan.q_order.is_identity()) return;
    const at::Tensor rows = plan.q_order.rows(call.q_layout, at::kCPU).unsqueeze(3);
    result.out = result.out.gather(2, rows.expand_as(result.out));
  }));
}

void add_softmax_faults(std::vector<Fault>& out) {
  out.push_back(looped("no rescaling at a larger logit", {.rescales = false}));
  out.push_back(looped("sums kept in bf16", {.rounds_sums = true}));
  out.push_back(fp32_only(looped("weights rounded before their sum", {.rounds_weights = true})));
  out.push_back(
      fp32_only({"everything in bf16", [](const auto& plan, const AttentionCall& call) {
                   AttentionCall low = call;
                   for (at::Tensor* x : {&low.q, &low.k, &low.v}) {
                     *x = x->to(at::kBFloat16);
                   }
                   const AttentionResult result = right(plan, low);
                   return AttentionResult{result.out.to(call.q.scalar_type()), result.lse};
                 }}));
  out.push_back(changed("bias ignored",
                        [](AttentionPlan&, AttentionCall& call) { call.bias = at::Tensor(); }));
  out.push_back(changed("bias subtracted", [](AttentionPlan&, AttentionCall& call) {
    if (call.bias.defined()) {
      call.bias = at::where(call.bias.eq(-kInfinity), call.bias, call.bias.neg());
    }
  }));
  out.push_back(changed("bias scaled", [](AttentionPlan&, AttentionCall& call) {
    if (call.bias.defined()) call.bias = call.bias * scale_of(call);
  }));
  out.push_back({"empty row has the mean of all", [](const auto& plan, const AttentionCall& call) {
                   AttentionResult result = right(plan, call);
                   if (!result.lse.defined()) return result;
                   const at::Tensor values = per_head(call.v, call.q.size(1)).nan_to_num();
                   result.out = at::where(result.lse.eq(-kInfinity).unsqueeze(3),
                                          values.mean(2, /*keepdim=*/true), result.out);
                   return result;
                 }});
  out.push_back({"empty row is NaN", [](const auto& plan, const AttentionCall& call) {
                   AttentionResult result = right(plan, call);
                   if (!result.lse.defined()) return result;
                   result.out =
                       result.out.masked_fill(result.lse.eq(-kInfinity).unsqueeze(3), std::nan(""));
                   return result;
                 }});
}

void add_lse_faults(std::vector<Fault>& out) {
  const auto changed_lse = [&](const char* name, std::function<void(at::Tensor&)> change) {
    out.push_back(written(name, [change](AttentionResult& result, const auto&, const auto&) {
      if (result.lse.defined()) change(result.lse);
    }));
  };
  changed_lse("lse in base 2", [](at::Tensor& lse) { lse = lse / std::log(2.0); });
  changed_lse("lse of an empty row 0",
              [](at::Tensor& lse) { lse = lse.masked_fill(lse.eq(-kInfinity), 0); });
  changed_lse("lse rounded to bf16",
              [](at::Tensor& lse) { lse = lse.to(at::kBFloat16).to(at::kFloat); });
  out.push_back({"lse without the maximum", [](const auto& plan, const AttentionCall& call) {
                   AttentionResult result = right(plan, call);
                   const auto logits = logits_of(plan, call);
                   if (logits && logits->s.size(3) > 0) result.lse = result.lse - logits->s.amax(3);
                   return result;
                 }});
}

void add_branch_faults(std::vector<Fault>& out) {
  out.push_back(changed("weights of groups ignored",
                        [](AttentionPlan& plan, AttentionCall&) { plan.group_weights.clear(); }));
  out.push_back(changed("given keys dropped", [](AttentionPlan& plan, AttentionCall&) {
    for (size_t i = 1; i < plan.branches.size(); ++i) {
      SoftmaxBranch* branch = softmax_of(plan, i);
      if (branch == nullptr || !branch->keys) continue;
      branch->keys->bias = at::full({1, 1, branch->keys->k.size(2)}, -kInfinity);
    }
  }));
  out.push_back(changed("bias of given keys ignored", [](AttentionPlan& plan, AttentionCall&) {
    SoftmaxBranch* branch = softmax_of(plan);
    if (branch != nullptr && branch->keys) branch->keys->bias = at::Tensor();
  }));
  out.push_back(changed("linear over all keys", [](AttentionPlan& plan, AttentionCall&) {
    for (Branch& branch : plan.branches) {
      if (auto* linear = std::get_if<LinearBranch>(&branch.kind)) linear->complement_of.reset();
    }
  }));
  out.push_back(changed("projection ignored", [](AttentionPlan& plan, AttentionCall&) {
    for (Branch& branch : plan.branches) {
      auto* linear = std::get_if<LinearBranch>(&branch.kind);
      if (linear != nullptr) linear->proj_weight = linear->proj_bias = at::Tensor();
    }
  }));
  out.push_back(changed("groups merged as one softmax", [](AttentionPlan& plan, AttentionCall&) {
    // Added up instead, that is.
    for (size_t i = 1; i < plan.branches.size(); ++i) {
      if (plan.branches[i].group == 0) plan.branches[i].group = i;
    }
  }));
  out.push_back(changed("quantization of keys left out", [](AttentionPlan& plan, AttentionCall&) {
    if (SoftmaxBranch* branch = softmax_of(plan)) branch->precision.k = {};
  }));
}

Precision* precision_of(AttentionPlan& plan) {
  SoftmaxBranch* branch = softmax_of(plan);
  const bool quantized = branch != nullptr && !branch->precision.is_storage();
  return quantized ? &branch->precision : nullptr;
}

// The weights of a plan that quantizes them before it does, and its values.
struct Rounding {
  Quantized how;
  at::Tensor p;  // fp32 [batch, heads, q_len, kv_len], relative to the largest of each row
  at::Tensor v;  // fp32 [batch, heads, kv_len, value_dim]
};

std::optional<Rounding> rounding_of(const AttentionPlan& plan, const AttentionCall& call) {
  AttentionPlan exact = plan;
  Precision* precision = precision_of(exact);
  if (precision == nullptr || precision->p.format == NumberFormat::storage ||
      plan.branches.size() != 1 || call.k.size(2) == 0) {
    return std::nullopt;
  }
  // What values of one each select: weights over their sum.
  AttentionCall wide = call;
  for (at::Tensor* x : {&wide.q, &wide.k, &wide.v}) *x = x->to(at::kFloat);
  const int64_t kv_len = call.k.size(2);
  wide.v =
      at::eye(kv_len, wide.k.options()).expand({call.k.size(0), call.k.size(1), kv_len, kv_len});
  const Precision whole = std::exchange(
      *precision, {.q = precision->q, .k = precision->k, .v = {}, .smooth_k = precision->smooth_k});
  const at::Tensor p = right(exact, wide).out, largest = p.amax(3, /*keepdim=*/true);
  at::Tensor v = per_head(call.v.to(at::kFloat), call.q.size(1));
  const at::Tensor valid = call.kv_layout.valid_mask();
  if (valid.defined()) v = v.masked_fill(valid.logical_not().transpose(2, 3), 0);
  const OperandSide side{plan.kv_order, call.kv_layout, softmax_of(exact)->selection.kv_blocks};
  return Rounding{whole.p, p / largest.masked_fill(largest.eq(0), 1),
                  quantized_operand(v, whole.v, side)};
}

at::Tensor mean_of(const at::Tensor& weights, const at::Tensor& v, at::ScalarType dtype) {
  const at::Tensor sum = weights.sum(3, /*keepdim=*/true);
  return (at::matmul(weights, v) / sum.masked_fill(sum.eq(0), 1)).to(dtype);
}

// Faults of plans with one scale for all weights, in a format: `round` makes of p what is wrong.
Fault rounded_otherwise(std::string name, NumberFormat format,
                        std::function<at::Tensor(const at::Tensor&)> round) {
  return {std::move(name), [=](const AttentionPlan& plan, const AttentionCall& call) {
            AttentionResult result = right(plan, call);
            const auto own = rounding_of(plan, call);
            if (own && own->how.format == format && own->how.unit == ScaleUnit::head) {
              result.out = mean_of(round(own->p), own->v, call.q.scalar_type());
            }
            return result;
          }};
}

at::Tensor relative_to_one(const at::Tensor& p, NumberFormat format) {
  return quantize(p, format, at::ones({1}, p.options()));
}

// As if tiles of keys came one after the other.
at::Tensor relative_to_the_largest_so_far(const at::Tensor& p) {
  std::vector<at::Tensor> out;
  for (int64_t end = 16; end < p.size(3) + 16; end += 16) {
    const at::Tensor so_far = p.slice(3, 0, end).amax(3, /*keepdim=*/true);
    const at::Tensor scale = so_far.masked_fill(so_far.eq(0), 1);
    out.push_back(relative_to_one(p.slice(3, end - 16, end) / scale, NumberFormat::int8) * scale);
  }
  return at::cat(out, 3);
}

// The plan without the rounding of weights: its lse is that of their sum.
at::Tensor lse_before_rounding(const AttentionPlan& plan, const AttentionCall& call) {
  AttentionPlan exact = plan;
  if (Precision* precision = precision_of(exact)) precision->p = {};
  return right(exact, call).lse;
}

void add_weight_faults(std::vector<Fault>& out) {
  out.push_back(
      written("divisor of weights before their rounding",
              [](AttentionResult& result, const auto& plan, const auto& call) {
                if (!result.lse.defined()) return;
                const at::Tensor ratio =
                    (result.lse - lse_before_rounding(plan, call)).exp().nan_to_num(1).unsqueeze(3);
                result.out = (result.out * ratio).to(result.out.scalar_type());
              }));
  out.push_back(written("lse of weights before their rounding",
                        [](AttentionResult& result, const auto& plan, const auto& call) {
                          if (result.lse.defined()) result.lse = lse_before_rounding(plan, call);
                        }));
  out.push_back(rounded_otherwise(
      "e4m3 weights relative to the largest", NumberFormat::e4m3,
      [](const at::Tensor& p) { return relative_to_one(p, NumberFormat::e4m3); }));
  out.push_back(rounded_otherwise("int8 weights before the largest is known", NumberFormat::int8,
                                  relative_to_the_largest_so_far));
}

void add_precision_faults(std::vector<Fault>& out) {
  const auto changed_precision = [&](const char* name, std::function<void(Precision&)> change) {
    out.push_back(changed(name, [change](AttentionPlan& plan, AttentionCall&) {
      if (Precision* precision = precision_of(plan)) change(*precision);
    }));
  };
  changed_precision("quantization of weights left out", [](Precision& x) { x.p = {}; });
  changed_precision("weights per block for the head's", [](Precision& x) {
    x.p.unit = x.p.unit == ScaleUnit::block ? ScaleUnit::head : ScaleUnit::block;
  });
  changed_precision("e4m3 weights for int8 ones", [](Precision& x) {
    if (x.p.format == NumberFormat::int8) x.p.format = NumberFormat::e4m3;
  });
  changed_precision("one scale of values for all channels", [](Precision& x) {
    if (x.v.unit == ScaleUnit::channel) x.v.unit = ScaleUnit::head;
  });
  changed_precision("one scale of queries for all blocks", [](Precision& x) {
    if (x.q.unit == ScaleUnit::block) x.q.unit = ScaleUnit::head;
  });
}

void add_gradient_faults(std::vector<Fault>& out) {
  out.push_back(changed_gradient("no gradient of a bias", [](auto&, AttentionCall& call) {
    if (call.bias.defined()) call.bias = call.bias.detach();
  }));
  out.push_back(changed_gradient("gradients with half the scale", [](auto&, AttentionCall& call) {
    call.q = call.q * 0.5 + call.q.detach() * 0.5;
  }));
  out.push_back(changed_gradient("keys' gradients of the first head", [](auto&, auto& call) {
    const int64_t group = call.q.size(1) / call.k.size(1);
    const auto first = [&](const at::Tensor& x) {
      const at::Tensor all = per_head(x, call.q.size(1));
      const at::Tensor own = at::arange(call.q.size(1)).remainder(group).eq(0).view({-1, 1, 1});
      return at::where(own, all, all.detach());
    };
    if (group > 1) call.k = first(call.k), call.v = first(call.v);
  }));
  out.push_back(changed_gradient("gradients stop at the rounding", [](auto& plan, auto& call) {
    if (precision_of(plan) != nullptr) call.q = call.q.detach();
  }));
  out.push_back(fp32_only(
      changed_gradient("gradients with weights before the rounding", [](auto& plan, auto&) {
        if (Precision* precision = precision_of(plan)) precision->p = {};
      })));
  out.push_back(
      fp32_only(changed_gradient("gradients with keys before the rounding", [](auto& plan, auto&) {
        if (Precision* precision = precision_of(plan)) precision->k = {};
      })));
}

void add_memory_faults(std::vector<Fault>& out) {
  out.push_back(written("two rows swapped", [](AttentionResult& result, const auto&, const auto&) {
    const int64_t length = result.out.size(2);
    if (length < 2) return;
    at::Tensor rows = at::arange(length);
    rows[length / 2] = length / 2 - 1;
    rows[length / 2 - 1] = length / 2;
    result.out = result.out.index_select(2, rows);
  }));
  out.push_back(
      written("last row not written", [](AttentionResult& result, const auto&, const auto&) {
        if (result.out.size(2) > 0) result.out.select(2, -1).zero_();
      }));
  out.push_back(written(
      "last bit depends on the call",
      [count = std::make_shared<int>(0)](AttentionResult& result, const auto&, const auto&) {
        const at::Tensor wide = result.out.to(at::kFloat);
        const double factor = ++*count % 2 == 0 ? 1 : 1 + std::pow(2.0, -23);
        if (result.out.scalar_type() == at::kFloat) result.out = wide * factor;
        if (*count % 2 == 0 && result.lse.defined()) result.lse = result.lse * (1 + 1.2e-7);
      }));
  out.push_back(written("last bit depends on the threads",
                        [](AttentionResult& result, const auto&, const auto&) {
                          if (at::get_num_threads() > 1 && result.lse.defined())
                            result.lse = result.lse * (1 + 1.2e-7);
                        }));
  out.push_back({"padding of values multiplied by 0", [](const auto& plan, const auto& call) {
                   AttentionResult result = right(plan, call);
                   const at::Tensor valid = call.kv_layout.valid_mask();
                   if (!valid.defined()) return result;
                   const at::Tensor none = per_head(call.v, call.q.size(1))
                                               .mul(valid.logical_not().transpose(2, 3))
                                               .sum(2, /*keepdim=*/true);
                   result.out = (result.out + 0 * none).to(result.out.scalar_type());
                   return result;
                 }});
  out.push_back({"result of the last call of this shape",
                 [last = std::make_shared<std::pair<at::Tensor, AttentionResult>>()](
                     const auto& plan, const AttentionCall& call) {
                   const bool same = last->first.defined() &&
                                     last->first.sizes() == call.q.sizes() &&
                                     last->second.out.size(3) == call.v.size(3);
                   if (!same) *last = {call.q, right(plan, call)};
                   return last->second;
                 }});
}

}  // namespace

std::vector<Fault> planted_faults() {
  std::vector<Fault> out;
  add_scale_faults(out);
  add_key_faults(out);
  add_map_faults(out);
  add_order_faults(out);
  add_softmax_faults(out);
  add_lse_faults(out);
  add_branch_faults(out);
  add_precision_faults(out);
  add_weight_faults(out);
  add_gradient_faults(out);
  add_memory_faults(out);
  return out;
}

}  // namespace fovea::test
