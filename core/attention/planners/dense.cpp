#include "core/attention/planners/dense.h"

namespace fovea {

AttentionPlan DensePlanner::plan(const AttentionCall&) {
  return {.planner = name(), .density = 1.0};
}

}  // namespace fovea
