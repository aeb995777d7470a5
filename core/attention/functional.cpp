#include "core/attention/functional.h"

#include <limits>

#include <ATen/ATen.h>

#include "core/attention/plan_data.h"
#include "core/check.h"
#include "core/guard.h"

namespace fovea {
namespace {

constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();  // as orders number them

template <typename... Parts>
void need(bool condition, const char* name, const at::Tensor& tensor, const Parts&... expected) {
  if (condition) return;
  throw Error(ErrorCode::bad_data, "attention",
              tensor.defined()
                  ? fovea::str("tensor '", name, "': expected ", expected..., ", got shape ",
                               tensor.sizes(), " of ", tensor.scalar_type())
                  : fovea::str("tensor '", name, "' is missing"));
}

// Executors keep workspaces, and serve one thread.
const std::vector<std::unique_ptr<Executor>>& own_executors() {
  thread_local const std::vector<std::unique_ptr<Executor>> executors = make_executors();
  return executors;
}

}  // namespace

void check_call(const AttentionCall& call) {
  const at::Tensor &q = call.q, &k = call.k, &v = call.v;
  need(q.defined() && q.dim() == 4 && at::isFloatingType(q.scalar_type()), "q", q,
       "[batch, num_heads, q_len, head_dim]");
  const auto dtype = q.scalar_type();
  need(k.defined() && k.dim() == 4 && k.scalar_type() == dtype, "k", k,
       "[batch, num_kv_heads, kv_len, head_dim] of ", dtype);
  need(v.defined() && v.dim() == 4 && v.scalar_type() == dtype, "v", v,
       "[batch, num_kv_heads, kv_len, value_dim] of ", dtype);
  need(q.size(3) > 0, "q", q, "at least one channel");
  need(v.size(3) > 0, "v", v, "at least one channel");
  need(q.size(2) <= kMaxRows, "q", q, "at most ", kMaxRows, " tokens");
  need(k.size(2) <= kMaxRows, "k", k, "at most ", kMaxRows, " tokens");
  need(k.size(0) == q.size(0) && k.size(3) == q.size(3), "k", k, "batch and head_dim of q ",
       q.sizes());
  need(k.size(1) > 0 && q.size(1) % k.size(1) == 0, "k", k, "heads that divide those of q ",
       q.sizes());
  need(v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2), "v", v,
       "batch, heads and kv_len of k ", k.sizes());
  need(k.device() == q.device() && v.device() == q.device(), "q", q, "k and v on one device");
  need(q.size(2) == call.q_layout.seq_len(), "q", q, "the tokens of its layout, ",
       call.q_layout.describe());
  need(k.size(2) == call.kv_layout.seq_len(), "k", k, "the tokens of its layout, ",
       call.kv_layout.describe());
  for (const TokenLayout* layout : {&call.q_layout, &call.kv_layout}) {
    for (const at::Tensor& length : layout->valid_len()) {
      need(!length.defined() || (length.scalar_type() == at::kLong && length.dim() == 1 &&
                                 length.size(0) == q.size(0)),
           "valid_len", length, "int64 [", q.size(0), "]");
    }
  }
  if (!call.bias.defined()) return;
  bool broadcasts = call.bias.dim() == 4 && at::isFloatingType(call.bias.scalar_type());
  const int64_t sizes[] = {q.size(0), q.size(1), q.size(2), k.size(2)};
  for (int64_t axis = 0; broadcasts && axis < 4; ++axis) {
    broadcasts = call.bias.size(axis) == 1 || call.bias.size(axis) == sizes[axis];
  }
  need(broadcasts, "bias", call.bias, "numbers that broadcast to ", at::IntArrayRef(sizes));
}

AttentionResult run_plan(const AttentionPlan& plan, const AttentionCall& call,
                         const std::string& executor) {
  return guarded("attention", [&] {
    check_call(call);
    validate(plan, call);
    check_data(plan, call);
    return pick_executor(own_executors(), plan, call, executor).run(plan, call, nullptr);
  });
}

AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const AttentionOptions& options) {
  AttentionCall call{.role = options.role,
                     .q_layout = options.q_layout,
                     .kv_layout = options.kv_layout,
                     .q = q,
                     .k = k,
                     .v = v,
                     .bias = options.bias,
                     .sm_scale = options.sm_scale,
                     .context = options.context,
                     .layer = options.layer,
                     .needs_lse = true};
  if (call.q_layout.segments().empty() && q.defined() && q.dim() == 4) {
    call.q_layout = TokenLayout::sequence(q.size(2));
  }
  if (call.kv_layout.segments().empty() && k.defined() && k.dim() == 4) {
    call.kv_layout = TokenLayout::sequence(k.size(2));
  }
  check_call(call);
  const std::unique_ptr<Planner> planner = make_planner(options.planner, options.planner_options);
  AttentionPlan plan = guarded("attention " + options.planner, [&] {
    return planner->plans(call.role) ? planner->plan(call) : AttentionPlan::dense("dense");
  });
  if (options.is_causal) {
    for (Branch& branch : plan.branches) {
      auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
      require(softmax != nullptr && !softmax->keys && softmax->selection.summaries.empty(),
              ErrorCode::usage, "attention " + options.planner, "no causal plans");
      softmax->selection.predicates.emplace_back(CausalPredicate{});
    }
  }
  return run_plan(plan, call, options.executor);
}

}  // namespace fovea
