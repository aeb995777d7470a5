#pragma once

#include "core/attention/planner.h"

namespace fovea {

/// Every query sees every valid key: the baseline that all methods are compared with.
///
/// paper  Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1
class DensePlanner : public Planner {
 public:
  std::string name() const override { return "dense"; }
  AttentionPlan plan(const AttentionCall& call) override;
};

}  // namespace fovea
