#include "core/attention/planners/dense.h"

namespace fovea {

AttentionPlan DensePlanner::plan(const AttentionCall&) { return AttentionPlan::dense(name()); }

}  // namespace fovea
