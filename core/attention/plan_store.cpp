#include "core/attention/plan_store.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/plan_data.h"
#include "core/attention/plan_json.h"
#include "core/attention/plan_of_head.h"
#include "core/check.h"
#include "core/config.h"

namespace fovea {
namespace {

constexpr const char* kFormat = "fovea plans";
constexpr const char* kIndex = "plan.json";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxCount = 1 << 24;
constexpr uint64_t kShardBytes = 256u << 20;
constexpr JsonLimits kLimits = {.max_bytes = 256u << 20};

constexpr const char* kRoles[] = {"self", "joint", "cross", "text"};
constexpr const char* kGuidance[] = {"conditional", "unconditional"};

template <size_t count>
int64_t number_of(Config& config, const char* key, const char* const (&names)[count]) {
  const std::string text = config.text(key, "");
  const auto found = std::find(std::begin(names), std::end(names), text);
  if (found == std::end(names)) config.refuse(key, "expected a known name");
  return found - std::begin(names);
}

void finish(const Config& config) {
  Report strict(/*strict=*/true);
  config.finish(strict);
}

// The items of an array of objects, by name.
std::vector<Config> items(const Json& json, const char* key, const std::string& where) {
  require(json.contains(key) && json[key].is_array(), ErrorCode::bad_data, where, "key '", key,
          "': expected an array");
  std::vector<Config> out;
  for (const Json& item : json[key]) {
    out.emplace_back(item, fovea::str(where, ": ", key, " ", out.size()));
  }
  return out;
}

Json shape_of(const AttentionCall& call) {
  return {{"q_layout", call.q_layout.describe()},
          {"kv_layout", call.kv_layout.describe()},
          {"heads", call.q.size(1)},
          {"kv_heads", call.k.size(1)}};
}

std::string shape_text(const Json& shape) {
  std::string out = shape["q_layout"].get<std::string>();
  if (shape["kv_layout"] != shape["q_layout"]) {
    out += " to " + shape["kv_layout"].get<std::string>();
  }
  out += fovea::str(", ", shape["heads"].get<int64_t>(), " heads");
  if (shape["kv_heads"] == shape["heads"]) return out;
  return out + fovea::str(" on ", shape["kv_heads"].get<int64_t>());
}

std::string_view bytes_of(const at::Tensor& x) {
  return {static_cast<const char*>(x.const_data_ptr()), x.nbytes()};
}

// What tells equal plans from others.
std::string sum_of(const Json& shape, const Json& plan, const TensorMap& tensors) {
  std::string text = shape.dump() + plan.dump();
  for (const auto& [name, tensor] : tensors) {
    text += fovea::str("\n", name, tensor.scalar_type(), tensor.sizes(), sha256(bytes_of(tensor)));
  }
  return sha256(text);
}

}  // namespace

int64_t step_bucket(const StepContext& context, int64_t buckets) {
  const int64_t steps = std::max<int64_t>(context.num_steps, 1);
  return std::clamp<int64_t>(context.step * buckets / steps, 0, buckets - 1);
}

PlanStore::PlanStore(std::string model, PlanRecipe recipe, int64_t buckets)
    : model_(std::move(model)), recipe_(std::move(recipe)), buckets_(buckets) {
  require(buckets >= 1 && buckets <= kMaxCount, ErrorCode::usage, "plans", "steps in ", buckets,
          " buckets");
}

void PlanStore::put(const PlanKey& key, const AttentionPlan& plan, const AttentionCall& call) {
  require(key.layer >= 0 && key.bucket >= 0 && key.bucket < buckets_, ErrorCode::usage, "plans",
          "layer ", key.layer, ", bucket ", key.bucket, " of ", buckets_);
  Stored stored;
  stored.shape = shape_of(call);
  stored.plan = to_json(plan, stored.tensors);
  const auto [place, is_new] =
      by_sum_.emplace(sum_of(stored.shape, stored.plan, stored.tensors), plans_.size());
  if (is_new) plans_.push_back(std::move(stored));
  entries_[key] = place->second;
}

std::optional<size_t> PlanStore::find(const PlanKey& key) const {
  PlanKey wanted = key;
  const int other = 1 - static_cast<int>(key.guidance);
  for (const GuidanceBranch guidance : {key.guidance, static_cast<GuidanceBranch>(other)}) {
    wanted.guidance = guidance;
    for (wanted.bucket = key.bucket; wanted.bucket >= 0; --wanted.bucket) {
      if (const auto found = entries_.find(wanted); found != entries_.end()) return found->second;
    }
  }
  return std::nullopt;
}

bool PlanStore::is_shared(size_t number) const {
  const auto uses = std::count_if(entries_.begin(), entries_.end(),
                                  [&](const auto& entry) { return entry.second == number; });
  return uses > 1;
}

std::optional<std::string> PlanStore::why_not(size_t number, const AttentionCall& call) const {
  const Json shape = shape_of(call);
  if (plans_.at(number).shape == shape) return std::nullopt;
  return fovea::str("the plan was made for ", shape_text(plans_.at(number).shape),
                    ", the call is of ", shape_text(shape));
}

std::string PlanStore::name_of(size_t number) const {
  return fovea::str(path_.empty() ? "plans" : path_.string(), ": plan ", number);
}

TensorMap PlanStore::tensors_of(size_t number) const {
  const Stored& stored = plans_.at(number);
  if (!stored.shard) return stored.tensors;
  const std::string prefix = fovea::str("plan.", number, ".");
  const SafetensorsFile& shard = *shards_.at(*stored.shard);
  TensorMap out;
  for (const StoredTensor& tensor : shard.tensors()) {
    if (tensor.name.starts_with(prefix)) {
      out.emplace(tensor.name.substr(prefix.size()), load_tensor(shard, tensor));
    }
  }
  return out;
}

AttentionPlan PlanStore::read(size_t number, const AttentionCall& call) const {
  const std::string where = name_of(number);
  const auto reason = why_not(number, call);
  require(!reason, ErrorCode::usage, where, reason.value_or(""));
  TensorMap tensors = tensors_of(number);
  try {
    // On the CPU everything can be looked at, also for a call that is elsewhere.
    AttentionCall shapes = call;
    for (at::Tensor* x : {&shapes.q, &shapes.k, &shapes.v}) {
      *x = at::empty({1}, x->scalar_type()).expand(x->sizes());
    }
    const AttentionPlan plan = plan_from_json(plans_[number].plan, tensors, where);
    validate(plan, shapes);
    check_data(plan, shapes);
    if (call.q.is_cpu()) return plan;
  } catch (const Error& error) {
    const bool lies = error.code() == ErrorCode::usage || error.code() == ErrorCode::bad_data;
    if (!lies || error.where().starts_with(where)) throw;
    throw Error(ErrorCode::bad_data, where, error.where() + ": " + error.reason());
  }
  for (auto& [name, tensor] : tensors) tensor = tensor.to(call.q.device());
  return plan_from_json(plans_[number].plan, tensors, where);
}

std::optional<AttentionPlan> PlanStore::get(const PlanKey& key, const AttentionCall& call) const {
  const auto number = find(key);
  if (!number) return std::nullopt;
  return read(*number, call);
}

std::optional<AttentionPlan> PlanStore::get(const PlanKey& key, int64_t head,
                                            const AttentionCall& call) const {
  const auto plan = get(key, call);
  if (!plan) return std::nullopt;
  return plan_of_head(*plan, head, call);
}

void PlanStore::save(const fs::path& folder) const {
  AtomicFolder out(folder);
  Json json = {{"format", kFormat},          {"version", kVersion},     {"model", model_},
               {"recipe", to_json(recipe_)}, {"buckets", buckets_},     {"shards", Json::array()},
               {"plans", Json::array()},     {"entries", Json::array()}};
  TensorMap shard;
  uint64_t bytes = 0;
  const auto flush = [&] {
    if (shard.empty()) return;
    const std::string file = fovea::str("plans-", json["shards"].size(), ".safetensors");
    save_tensors(out.temporary_path() / file, shard, /*overwrite=*/false);
    json["shards"].push_back(
        {{"file", file}, {"sha256", sha256_file(out.temporary_path() / file)}});
    shard.clear();
    bytes = 0;
  };
  for (size_t number = 0; number < plans_.size(); ++number) {
    const TensorMap tensors = tensors_of(number);
    Json place;
    if (!tensors.empty()) place = json["shards"].size();
    for (const auto& [name, tensor] : tensors) {
      shard[fovea::str("plan.", number, ".", name)] = tensor;
      bytes += tensor.nbytes();
    }
    json["plans"].push_back(
        {{"shape", plans_[number].shape}, {"shard", place}, {"plan", plans_[number].plan}});
    if (bytes >= kShardBytes) flush();
  }
  flush();
  for (const auto& [key, number] : entries_) {
    json["entries"].push_back({{"layer", key.layer},
                               {"role", kRoles[static_cast<size_t>(key.role)]},
                               {"guidance", kGuidance[static_cast<size_t>(key.guidance)]},
                               {"bucket", key.bucket},
                               {"plan", number}});
  }
  AtomicFile index(out.temporary_path() / kIndex, /*overwrite=*/false);
  index.write(json.dump(1) + "\n");
  index.commit();
  out.commit();
}

PlanStore PlanStore::open(const fs::path& folder, const std::string& model) {
  PlanStore out;
  out.read_index(folder / kIndex);
  require(model.empty() || out.model_.empty() || out.model_ == model, ErrorCode::usage,
          out.path_.string(), "the plans are of another model: of fingerprint ",
          printable(out.model_, 80), ", the model's is ", printable(model, 80));
  return out;
}

void PlanStore::read_index(const fs::path& path) {
  path_ = path;
  Config config(read_json(path, kLimits), path.string());
  if (config.text("format", "") != kFormat) {
    config.refuse("format", fovea::str("expected \"", kFormat, "\""));
  }
  const int64_t version = config.integer("version", 0, 0, INT64_MAX);
  if (version != kVersion) {
    config.refuse("version", fovea::str("version ", kVersion, " is read"));
  }
  model_ = config.text("model", "");
  buckets_ = config.integer("buckets", 1, 1, kMaxCount);
  config.ignore({"recipe", "shards", "plans", "entries"});
  finish(config);
  const Json& json = config.json();
  if (!config.has("recipe")) config.refuse("recipe", "expected an object");
  recipe_ = recipe_from_json(json["recipe"], path.string() + ": recipe");
  read_shards(json, path);
  read_plans(json, path.string());
  read_entries(json, path.string());
}

void PlanStore::read_shards(const Json& json, const fs::path& path) {
  for (Config& item : items(json, "shards", path.string())) {
    const fs::path name = item.text("file", "");
    if (name.empty() || name.filename() != name) {
      item.refuse("file", "expected a file in the same folder");
    }
    const std::string sum = item.text("sha256", "");
    finish(item);
    const fs::path file = path.parent_path() / name;
    require(sha256_file(file) == sum, ErrorCode::bad_data, file.string(),
            "is damaged: its SHA-256 is not the one in ", kIndex);
    shards_.push_back(std::make_shared<const SafetensorsFile>(file));
  }
}

void PlanStore::read_plans(const Json& json, const std::string& where) {
  for (Config& item : items(json, "plans", where)) {
    Stored stored;
    item.ignore({"shape", "plan"});
    for (const char* key : {"shape", "plan"}) {
      if (!item.has(key)) item.refuse(key, "expected an object");
    }
    Config shape(item.json()["shape"], item.where() + ": shape");
    stored.shape = {{"q_layout", shape.text("q_layout", "")},
                    {"kv_layout", shape.text("kv_layout", "")},
                    {"heads", shape.integer("heads", 0, 0, kMaxCount)},
                    {"kv_heads", shape.integer("kv_heads", 0, 0, kMaxCount)}};
    finish(shape);
    stored.plan = item.json()["plan"];
    const auto last = static_cast<int64_t>(shards_.size()) - 1;
    if (const auto shard = item.optional_integer("shard", 0, last)) {
      stored.shard = static_cast<size_t>(*shard);
    }
    finish(item);
    plans_.push_back(std::move(stored));
  }
}

void PlanStore::read_entries(const Json& json, const std::string& where) {
  const auto last = static_cast<int64_t>(plans_.size()) - 1;
  for (Config& item : items(json, "entries", where)) {
    PlanKey key;
    key.layer = item.integer("layer", 0, 0, kMaxCount);
    key.role = static_cast<AttentionRole>(number_of(item, "role", kRoles));
    key.guidance = static_cast<GuidanceBranch>(number_of(item, "guidance", kGuidance));
    key.bucket = item.integer("bucket", 0, 0, buckets_ - 1);
    if (!item.has("plan")) item.refuse("plan", "expected the number of a plan");
    const auto number = static_cast<size_t>(item.integer("plan", 0, 0, last));
    finish(item);
    require(entries_.emplace(key, number).second, ErrorCode::bad_data, item.where(),
            "stands for the same calls as an entry before it");
  }
}

}  // namespace fovea
