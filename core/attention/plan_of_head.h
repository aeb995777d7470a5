#pragma once

#include <cstdint>

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// The part of a plan that concerns one head of queries.
///
/// call     what the plan was made for
/// returns  a plan for `call_of_head(call, head)`
/// throws   Error usage for a head that is not there
AttentionPlan plan_of_head(const AttentionPlan& plan, int64_t head, const AttentionCall& call);

/// The call of one head of queries and the head of keys that it uses.
AttentionCall call_of_head(const AttentionCall& call, int64_t head);

}  // namespace fovea
