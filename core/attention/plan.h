#pragma once

#include <string>

namespace fovea {

/// What to compute for one `AttentionCall`: data, made by a planner and run by an executor.
///
/// Today the only plan is one softmax branch over every valid key.
struct AttentionPlan {
  std::string planner;   ///< name of the planner that made it
  double density = 1.0;  ///< share of query-key pairs that is computed
};

}  // namespace fovea
