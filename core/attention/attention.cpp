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

Attention::Attention(const std::string& planner, const Json& options)
    : planner_(make_planner(planner, options)), executors_(make_executors()) {}

const AttentionPlan& Attention::plan_of(const AttentionCall& call) {
  const bool planned = planner_->plans(call.role);
  const std::string key = planned ? planner_->cache_key(call) : "dense";
  if (const auto found = plans_.find(key); !key.empty() && found != plans_.end()) {
    return found->second;
  }
  AttentionPlan plan = planned ? planner_->plan(call) : AttentionPlan::dense("dense");
  return key.empty() ? last_ = std::move(plan) : plans_[key] = std::move(plan);
}

at::Tensor Attention::run(const AttentionCall& call) {
  check_shapes(call);
  const AttentionPlan& plan = plan_of(call);
  validate(plan, call);
  std::string reasons;
  for (const auto& executor : executors_) {
    if (const auto reason = executor->why_not(plan, call)) {
      reasons += str(" ", executor->name(), ": ", *reason, ";");
      continue;
    }
    ++counts_[str(role_name(call.role), ": ", plan.planner, " on ", executor->name())];
    return executor->run(plan, call).out;
  }
  throw Error(ErrorCode::device, "attention",
              str("no executor runs the plan of ", plan.planner, ":", reasons));
}

}  // namespace fovea
