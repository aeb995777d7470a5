#pragma once

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// Where a run stays dense: most methods lose less where the video's layout is decided, in the
/// first steps, and in the first layers.
struct DenseSchedule {
  int64_t steps = 0;   ///< first steps of the schedule
  int64_t layers = 0;  ///< first layers of the network

  /// Options of every planner: dense_steps, dense_layers; default 0.
  static DenseSchedule read(Config& options);
  bool is_empty() const { return steps == 0 && layers == 0; }
};

/// Another planner, but for the calls that the schedule leaves dense: those are planned as a dense
/// run plans them.
class SchedulePlanner : public Planner {
 public:
  SchedulePlanner(std::unique_ptr<Planner> planner, DenseSchedule schedule)
      : planner_(std::move(planner)), schedule_(schedule) {}

  std::string name() const override { return planner_->name(); }
  bool plans(AttentionRole role) const override { return planner_->plans(role); }
  std::vector<std::string> param_names() const override { return planner_->param_names(); }
  PlanRecipe recipe(const Json& options) const override;
  std::string cache_key(const AttentionCall& call) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  bool is_dense(const AttentionCall& call) const;

  std::unique_ptr<Planner> planner_;
  DenseSchedule schedule_;
};

}  // namespace fovea
