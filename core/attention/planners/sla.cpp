#include "core/attention/planners/sla.h"

#include <ATen/ATen.h>

#include "core/attention/select.h"
#include "core/check.h"

namespace fovea {
namespace {

constexpr const char* kName = "sla";

at::Tensor given_mask(const at::Tensor& mask, const Selection& selection) {
  const int64_t nq = selection.q_blocks.num_blocks(), nk = selection.kv_blocks.num_blocks();
  const bool fits = mask.dim() == 4 && mask.size(2) == nq && mask.size(3) == nk;
  require(fits && (mask.scalar_type() == at::kBool || mask.scalar_type() == at::kByte),
          ErrorCode::usage, kName, "expected a block mask, bool or uint8, of ", nq, " x ", nk,
          " blocks, got ", mask.scalar_type(), " ", mask.sizes());
  return mask.ne(0).to(at::kByte);
}

}  // namespace

FeatureMap feature_map_of(const std::string& name) {
  if (name == "softmax") return FeatureMap::softmax;
  if (name == "elu") return FeatureMap::elu_plus_one;
  require(name == "relu", ErrorCode::usage, kName, "feature map '", printable(name),
          "': softmax, elu or relu expected");
  return FeatureMap::relu;
}

AttentionPlan sla_plan(const AttentionCall& call, const SlaOptions& options,
                       const at::Tensor& proj_weight, const at::Tensor& proj_bias,
                       const at::Tensor& block_mask) {
  AttentionPlan plan = AttentionPlan::dense(kName);
  Selection& selection = options.blocks.cut(plan, call);
  if (block_mask.defined()) {
    selection.classes = given_mask(block_mask, selection).to(call.q.device());
  } else {
    const at::Tensor kept = keep_highest_means(call, plan, selection, options.density);
    set_classes(selection, kept.view(at::kByte), call);
  }
  LinearBranch linear;
  linear.feature_map = options.feature_map;
  if (!options.linear_over_all) linear.complement_of = 0;
  linear.epsilon = options.epsilon;
  linear.proj_weight = proj_weight;
  linear.proj_bias = proj_bias;
  plan.branches.push_back({std::move(linear), /*group=*/1});
  return plan;
}

SlaPlanner::SlaPlanner(Config& options) {
  options_.density = options.number("density", options_.density);
  if (!(options_.density > 0 && options_.density <= 1)) {
    options.refuse("density", "expected a share up to 1");
  }
  options_.blocks = BlockSizes::read(options, options_.blocks.q, options_.blocks.kv);
  const std::string over = options.text("linear_over", "unselected");
  if (over != "unselected" && over != "all") {
    options.refuse("linear_over", "expected unselected or all");
  }
  options_.linear_over_all = over == "all";
  options_.feature_map = feature_map_of(options.text("feature_map", "softmax"));
  const std::string projection = options.text("projection", "zero");
  if (projection != "zero" && projection != "identity") {
    options.refuse("projection", "expected zero or identity");
  }
  identity_ = projection == "identity";
}

AttentionPlan SlaPlanner::plan(const AttentionCall& call) {
  require(call.params.empty() || call.params.size() == 2, ErrorCode::usage, name(),
          "expected proj_weight and proj_bias, got ", call.params.size(), " tensors");
  if (!call.params.empty()) return sla_plan(call, options_, call.params[0], call.params[1]);
  AttentionPlan plan = sla_plan(call, options_);
  if (!identity_) plan.branches.pop_back();
  return plan;
}

}  // namespace fovea
