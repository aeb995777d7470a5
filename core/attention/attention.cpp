#include "core/attention/attention.h"

#include "core/check.h"

namespace fovea {
namespace {

const char* role_name(AttentionRole role) {
  switch (role) {
    case AttentionRole::self:
      return "self";
    case AttentionRole::joint:
      return "joint";
    case AttentionRole::cross:
      return "cross";
    case AttentionRole::text:
      return "text";
  }
  return "?";
}

void check_shapes(const AttentionCall& call) {
  FOVEA_ASSERT(call.q.dim() == 4 && call.k.dim() == 4 && call.v.dim() == 4);
  FOVEA_ASSERT(call.q.size(2) == call.q_layout.seq_len(), "q has ", call.q.size(2),
               " tokens, its layout is ", call.q_layout.describe());
  FOVEA_ASSERT(call.k.size(2) == call.kv_layout.seq_len() && call.v.size(2) == call.k.size(2),
               "k has ", call.k.size(2), " tokens, its layout is ", call.kv_layout.describe());
  FOVEA_ASSERT(call.q.size(3) == call.k.size(3) && call.q.size(1) % call.k.size(1) == 0);
}

}  // namespace

Attention::Attention(const std::string& planner, const Json& options, std::string executor)
    : planner_(make_planner(planner, options)),
      executor_(std::move(executor)),
      executors_(make_executors()) {
  check_executor_name(executors_, executor_);
}

Attention::Planned& Attention::plan_of(const AttentionCall& call) {
  const bool planned = planner_->plans(call.role);
  std::string key = planned ? planner_->cache_key(call) : "dense";
  if (!key.empty()) {
    // What executors make of a plan depends on these too.
    key += fovea::str("; ", call.q.scalar_type(), " ", call.q.sizes(), " ", call.k.sizes());
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
  }
  Planned made;
  made.plan = planned ? planner_->plan(call) : AttentionPlan::dense("dense");
  made.is_kept = !key.empty();
  return made.is_kept ? plans_[key] = std::move(made) : last_ = std::move(made);
}

at::Tensor Attention::run(const AttentionCall& call) {
  check_shapes(call);
  Planned& planned = plan_of(call);
  const AttentionPlan& plan = planned.plan;
  validate(plan, call);
  Executor& executor = pick_executor(executors_, plan, call, executor_);
  ++counts_[str(role_name(call.role), ": ", plan.planner, " on ", executor.name())];
  if (planned.is_kept && planned.lowered_by != &executor) {
    planned.lowered = executor.lower(plan, call);
    planned.lowered_by = &executor;
  }
  const AttentionResult result = executor.run(plan, call, planned.lowered.get());
  if (observer_) observer_(call, plan, result);
  return result.out;
}

}  // namespace fovea
