#include "core/attention/planners/paro.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/packed_bits.h"
#include "core/attention/plan_json.h"
#include "core/attention/plan_store.h"
#include "core/attention/planners/grid.h"
#include "core/attention/select.h"
#include "core/check.h"
#include "core/safetensors.h"
#include "core/weights.h"

namespace fovea {
namespace {

Precision precision_from(Config& options) {
  const std::string name = options.text("precision", "int8");
  Precision out;
  if (name == "storage") return out;
  if (name != "int8" && name != "int8_qk") {
    options.refuse("precision", "expected int8, int8_qk or storage");
  }
  const Quantized int8 = {.format = NumberFormat::int8, .unit = ScaleUnit::block};
  out.q = out.k = int8;
  if (name == "int8") out.v = out.p = int8;
  return out;
}

}  // namespace

ParoPlanner::ParoPlanner(Config& options)
    : block_(options.integer("block", 64, 16, 1024)), precision_(precision_from(options)) {
  read_axes(options);
  const std::string file = options.text("file", "");
  if (!file.empty()) read(file);
}

void ParoPlanner::read_axes(Config& from) {
  from.ignore({"axes"});
  if (!from.has("axes")) return;
  const Json given = from.json()["axes"];
  const Json layers = given.is_string() ? Json::array({Json::array({given})}) : given;
  if (!layers.is_array() || layers.empty()) from.refuse("axes", "expected an array of layers");
  axes_.clear();
  for (const Json& layer : layers) {
    if (!layer.is_array() || layer.empty()) from.refuse("axes", "expected orders in each layer");
    axes_.emplace_back();
    for (const Json& head : layer) {
      const auto axes = head.is_string() ? axes_from_name(head.get<std::string>()) : std::nullopt;
      if (!axes) from.refuse("axes", "expected orders such as \"HWF\"");
      axes_.back().push_back(*axes);
    }
  }
}

PlanRecipe ParoPlanner::recipe(const Json& options) const {
  Json out = options;
  out.erase("file");
  out["block"] = block_;
  out["axes"] = Json::array();
  for (const std::vector<Axes>& layer : axes_) {
    out["axes"].emplace_back(Json::array());
    for (const Axes& axes : layer) out["axes"].back().push_back(axes_name(axes));
  }
  return {name(), std::move(out)};
}

void ParoPlanner::read(const std::filesystem::path& path) {
  Config file = Config::read(path);
  block_ = file.integer("block", block_, 16, 1024);
  if (file.has("axes") && !file.json()["axes"].is_array()) {
    file.refuse("axes", "expected an array of layers");
  }
  read_axes(file);
  const std::string masks = file.text("masks", "");
  layout_ = file.text("layout", "");
  buckets_ = file.integer("buckets", buckets_, 1, 1000);
  if (!masks.empty()) {
    const fs::path name = masks;
    if (name.filename() != name) file.refuse("masks", "expected a file in the same folder");
    if (layout_.empty()) file.refuse("layout", "expected the layout of the masks");
    masks_ = path.parent_path() / name;
    const SafetensorsFile checked(masks_);  // what is wrong with it is said now
  }
  Report strict(/*strict=*/true);
  file.finish(strict);
}

const std::vector<ParoPlanner::Axes>& ParoPlanner::axes_of(const AttentionCall& call) const {
  if (axes_.size() == 1) return axes_[0];
  require(call.layer >= 0 && call.layer < static_cast<int64_t>(axes_.size()), ErrorCode::usage,
          name(), "the plan file has ", axes_.size(), " layers, but not layer ", call.layer);
  return axes_[static_cast<size_t>(call.layer)];
}

at::Tensor ParoPlanner::mask_of(const AttentionCall& call, const Selection& selection) const {
  if (masks_.empty()) return {};
  require(call.q_layout.describe() == layout_ && call.kv_layout.describe() == layout_,
          ErrorCode::usage, name(), "the masks are for ", layout_, ", the call is of ",
          call.q_layout.describe());
  const SafetensorsFile file(masks_);
  const StoredTensor* stored = nullptr;
  for (int64_t bucket = step_bucket(call.context, buckets_); bucket >= 0 && stored == nullptr;
       --bucket) {
    stored = file.find(fovea::str("layer.", call.layer, ".bucket.", bucket));
  }
  if (stored == nullptr) return {};
  const int64_t nq = selection.q_blocks.num_blocks(), nk = selection.kv_blocks.num_blocks();
  const int64_t heads = stored->shape.empty() ? 0 : stored->shape[0];
  const std::vector<int64_t> shape = {heads, nq, (nk + 7) / 8};
  require(stored->type == StoredType::u8 && stored->shape == shape &&
              (heads == 1 || heads == call.q.size(1)),
          ErrorCode::bad_data, masks_.string(), "tensor ", stored->name, ": expected U8 [1 or ",
          call.q.size(1), ", ", nq, ", ", shape[2], "]");
  return unpack_bits(load_tensor(file, *stored), 1, nk).unsqueeze(0);
}

std::string ParoPlanner::cache_key(const AttentionCall& call) const {
  const int64_t layer = axes_.size() > 1 || !masks_.empty() ? call.layer : 0;
  const int64_t bucket = masks_.empty() ? 0 : step_bucket(call.context, buckets_);
  return fovea::str(layouts_key(call), "; layer ", layer, ", bucket ", bucket);
}

AttentionPlan ParoPlanner::plan(const AttentionCall& call) {
  AttentionPlan plan = AttentionPlan::dense(name());
  const std::vector<Axes>& axes = axes_of(call);
  const int64_t heads = call.q.size(1), kv_heads = call.k.size(1);
  const auto own = static_cast<int64_t>(axes.size());
  require(own == 1 || own == kv_heads, ErrorCode::usage, name(), "the plan file has axes for ", own,
          " heads, the call has ", kv_heads);
  plan.kv_order = TokenOrder::axes(axes);
  std::vector<Axes> of_queries;
  for (int64_t head = 0; head < (own == 1 ? 1 : heads); ++head) {
    of_queries.push_back(axes[static_cast<size_t>(own == 1 ? 0 : head * kv_heads / heads)]);
  }
  plan.q_order = TokenOrder::axes(std::move(of_queries));
  auto& branch = std::get<SoftmaxBranch>(plan.branches[0].kind);
  branch.precision = precision_;
  branch.selection.q_blocks = BlockAxis::uniform(call.q_layout, block_);
  branch.selection.kv_blocks = BlockAxis::uniform(call.kv_layout, block_);
  const at::Tensor mask = mask_of(call, branch.selection);
  if (mask.defined()) set_classes(branch.selection, mask, call);
  return plan;
}

}  // namespace fovea
