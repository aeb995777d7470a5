#include <cmath>

#include <ATen/ATen.h>

#include "core/attention/packed_bits.h"
#include "core/attention/plan_json.h"
#include "core/attention/plan_names.h"
#include "core/check.h"

namespace fovea {
namespace {

template <typename Value, size_t count>
const char* name_of(const Name<Value> (&names)[count], Value value) {
  for (const auto& entry : names) {
    if (entry.value == value) return entry.name;
  }
  FOVEA_ASSERT(false);
}

class Writer {
 public:
  explicit Writer(TensorMap& tensors) : tensors_(tensors) {}

  Json plan(const AttentionPlan& plan) {
    where_ = "plan of " + plan.planner;
    Json out = {{"planner", plan.planner},
                {"q_order", order(plan.q_order, "q_order")},
                {"kv_order", order(plan.kv_order, "kv_order")},
                {"branches", Json::array()}};
    for (const Branch& branch : plan.branches) {
      const std::string name = fovea::str("branch.", out["branches"].size());
      Json json =
          std::visit([&](const auto& kind) { return written(kind, name + "."); }, branch.kind);
      json["group"] = branch.group;
      out["branches"].push_back(std::move(json));
    }
    if (plan.group_weights.empty()) return out;
    out["group_weights"] = Json::array();
    for (const at::Tensor& weight : plan.group_weights) {
      const std::string name = fovea::str("group.", out["group_weights"].size(), ".weight");
      out["group_weights"].push_back(weight.defined() ? tensor(name, weight) : Json());
    }
    return out;
  }

 private:
  Json tensor(const std::string& name, const at::Tensor& value) {
    tensors_[name] = value.detach().to(at::kCPU).contiguous();
    return name;
  }

  static Json number(double value) {
    if (std::isfinite(value)) return value;
    return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  }

  Json order(const TokenOrder& order, const std::string& name) {
    switch (order.kind()) {
      case TokenOrder::Kind::identity:
        return {{"kind", "identity"}};
      case TokenOrder::Kind::tiles:
        return {{"kind", "tiles"}, {"tile", order.tile()}};
      case TokenOrder::Kind::index:
        return {{"kind", "index"}, {"rows", tensor(name, order.index_rows())}};
      case TokenOrder::Kind::axes:
        break;
    }
    Json heads = Json::array();
    for (const auto& axes : order.axes_per_head()) heads.push_back(axes_name(axes));
    return {{"kind", "axes"}, {"axes", std::move(heads)}};
  }

  Json blocks(const BlockAxis& axis, const std::string& name) {
    if (axis.device_offsets().defined()) {
      return {{"offsets", tensor(name, axis.device_offsets())}, {"max_size", axis.max_size()}};
    }
    const std::vector<int64_t>& offsets = axis.host_offsets();
    if (offsets.empty()) return {};
    Json runs = Json::array();
    for (size_t i = 1; i < offsets.size(); ++i) {
      const int64_t size = offsets[i] - offsets[i - 1];
      if (!runs.empty() && runs.back()[1] == size) {
        runs.back()[0] = runs.back()[0].get<int64_t>() + 1;
      } else {
        runs.push_back({1, size});
      }
    }
    return {{"sizes", std::move(runs)}};
  }

  Json written(const WindowPredicate& window, const std::string&) {
    Json axes = Json::array();
    for (const AxisWindow& axis : window.axes) {
      axes.push_back({{"size", axis.size},
                      {"stride", axis.stride},
                      {"dilation", axis.dilation},
                      {"causal", axis.causal}});
    }
    return {{"kind", "window"}, {"axes", std::move(axes)}};
  }
  Json written(const DiscPredicate& disc, const std::string&) {
    return {{"kind", "disc"}, {"radius", number(disc.radius)}};
  }
  Json written(const BandPredicate& band, const std::string&) {
    return {{"kind", "band"}, {"width", band.width}, {"in_order", band.in_order}};
  }
  Json written(const CausalPredicate& causal, const std::string&) {
    return {{"kind", "causal"}, {"in_order", causal.in_order}};
  }
  Json written(const StoredPredicate& stored, const std::string& name) {
    const at::Tensor& visible = stored.visible;
    require(visible.defined() && visible.dim() > 0 && visible.scalar_type() == at::kBool,
            ErrorCode::usage, where_, "stored bits are no bool tensor");
    return {{"kind", "stored"},
            {"tensor", tensor(name, pack_bits(visible, 1))},
            {"columns", visible.size(-1)}};
  }

  Json selection(const Selection& selection, const std::string& name) {
    Json out = {{"q_blocks", blocks(selection.q_blocks, name + "q_blocks")},
                {"kv_blocks", blocks(selection.kv_blocks, name + "kv_blocks")}};
    if (selection.classes.defined()) {
      const at::Tensor& classes = selection.classes;
      require(classes.dim() == 4 && classes.scalar_type() == at::kByte &&
                  classes.size(2) == selection.q_blocks.num_blocks() &&
                  classes.size(3) == selection.kv_blocks.num_blocks(),
              ErrorCode::usage, where_, "a class map ", classes.sizes(), " of ",
              selection.q_blocks.num_blocks(), " by ", selection.kv_blocks.num_blocks(), " blocks");
      const size_t known = block_class::first_summary + selection.summaries.size();
      const int64_t highest = classes.numel() > 0 ? classes.max().item<int64_t>() : 0;
      require(highest < static_cast<int64_t>(known), ErrorCode::usage, where_, "class ", highest,
              " of a block: below ", known, " expected");
      const int64_t bits = class_bits(selection.summaries.size());
      out["classes"] = {{"tensor", tensor(name + "classes", pack_bits(classes, bits))},
                        {"bits", bits}};
    }
    out["summaries"] = Json::array();
    for (const Summary& summary : selection.summaries) {
      out["summaries"].push_back({{"pool", summary.pool}, {"log_count", summary.log_count}});
    }
    out["predicates"] = Json::array();
    for (const Predicate& predicate : selection.predicates) {
      const std::string own = fovea::str(name, "predicate.", out["predicates"].size());
      out["predicates"].push_back(
          std::visit([&](const auto& rule) { return written(rule, own); }, predicate));
    }
    return out;
  }

  static Json precision(const Precision& precision) {
    const auto operand = [](const Quantized& x) {
      return Json{{"format", name_of(kFormats, x.format)},
                  {"unit", name_of(kUnits, x.unit)},
                  {"group", x.group}};
    };
    return {{"q", operand(precision.q)},
            {"k", operand(precision.k)},
            {"v", operand(precision.v)},
            {"p", operand(precision.p)},
            {"smooth_k", precision.smooth_k}};
  }

  // Under a key, where it is there.
  void add(Json& to, const char* key, const std::string& name, const at::Tensor& value) {
    if (value.defined()) to[key] = tensor(name + key, value);
  }

  Json written(const SoftmaxBranch& branch, const std::string& name) {
    Json out = {{"kind", "softmax"}, {"selection", selection(branch.selection, name)}};
    if (branch.keys) {
      Json& keys = out["keys"] = Json::object();
      add(keys, "k", name + "keys.", branch.keys->k);
      add(keys, "v", name + "keys.", branch.keys->v);
      add(keys, "bias", name + "keys.", branch.keys->bias);
    }
    if (branch.precision != Precision{}) out["precision"] = precision(branch.precision);
    return out;
  }
  Json written(const LinearBranch& branch, const std::string& name) {
    Json out = {{"kind", "linear"},
                {"feature_map", name_of(kFeatureMaps, branch.feature_map)},
                {"epsilon", number(branch.epsilon)}};
    if (branch.complement_of) out["complement_of"] = *branch.complement_of;
    add(out, "proj_weight", name, branch.proj_weight);
    add(out, "proj_bias", name, branch.proj_bias);
    return out;
  }
  Json written(const PooledValuesBranch& branch, const std::string& name) {
    Json out = {{"kind", "pooled_values"},
                {"q_blocks", blocks(branch.q_blocks, name + "q_blocks")},
                {"kv_blocks", blocks(branch.kv_blocks, name + "kv_blocks")}};
    add(out, "weights", name, branch.weights);
    return out;
  }
  Json written(const ReuseBranch& branch, const std::string& name) {
    Json out = {{"kind", "reuse"}};
    add(out, "out", name, branch.out);
    add(out, "lse", name, branch.lse);
    return out;
  }

  TensorMap& tensors_;
  std::string where_;
};

}  // namespace

Json to_json(const AttentionPlan& plan, TensorMap& tensors) { return Writer(tensors).plan(plan); }

std::string axes_name(const std::array<int64_t, 3>& axes) {
  std::string out;
  for (const int64_t axis : axes) out += "FHW"[axis];
  return out;
}

}  // namespace fovea
