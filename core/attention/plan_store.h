#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/attention/call.h"
#include "core/attention/plan.h"
#include "core/attention/plan_recipe.h"
#include "core/file.h"
#include "core/safetensors.h"
#include "core/weights.h"

namespace fovea {

/// Where in a run a plan is used.
struct PlanKey {
  int64_t layer = 0;
  AttentionRole role = AttentionRole::self;
  GuidanceBranch guidance = GuidanceBranch::conditional;
  int64_t bucket = 0;  ///< of the steps, see `step_bucket`
  auto operator<=>(const PlanKey&) const = default;
};

/// The part of the schedule that a step is in, of `buckets` parts of equal length.
int64_t step_bucket(const StepContext& context, int64_t buckets);

/// The plans of a run of one model, to be used again, and how they were made.
///
/// As a folder: plan.json, and safetensors files that it lists with their SHA-256. plan.json is
///   "format", "version"  "fovea plans", 1
///   "model"              fingerprint of the model's files, or ""
///   "recipe"             see `PlanRecipe`: all that travels to other shapes
///   "buckets"            into how many parts of equal length the steps are cut
///   "shards"             [{"file", "sha256"}, ..]
///   "plans"              [{"shape": {"q_layout", "kv_layout", "heads", "kv_heads"},
///                          "shard": number or null, "plan": see `to_json`}, ..]
///   "entries"            [{"layer", "role", "guidance", "bucket", "plan": number}, ..]
/// Tensor T of plan N is "plan.N.T" in its shard. Equal plans are stored once.
class PlanStore {
 public:
  /// model    fingerprint of the model's files; "": of none
  /// throws   Error usage for less than one bucket
  PlanStore(std::string model, PlanRecipe recipe, int64_t buckets);

  /// Opens a folder. Checks plan.json and the shards against their sums; plans are read when they
  /// are asked for.
  ///
  /// model   the fingerprint that is expected; "": any
  /// throws  Error bad_data naming the file and what is wrong: no such file, damaged JSON, unknown
  ///         keys or version, a shard that is missing, damaged or outside of the folder; usage for
  ///         another model
  static PlanStore open(const fs::path& folder, const std::string& model = "");

  /// Keeps a copy of a plan that was made for the call; replaces that of an equal key. Waits for
  /// the device.
  ///
  /// throws  Error usage for a negative layer, a bucket that is not there, and as `to_json`
  void put(const PlanKey& key, const AttentionPlan& plan, const AttentionCall& call);

  /// The number of the plan for a key: of its bucket, or of the last one before that has one; of
  /// its guidance branch, or the other one where that has none. Nothing: there is no plan.
  std::optional<size_t> find(const PlanKey& key) const;
  /// Whether more than one key has the plan.
  bool is_shared(size_t number) const;
  /// Why a plan does not go with a call: layouts and heads; nothing when it does.
  std::optional<std::string> why_not(size_t number, const AttentionCall& call) const;
  /// The plan on the call's device.
  ///
  /// throws  Error usage as `why_not` says, bad_data for a plan that lies
  AttentionPlan read(size_t number, const AttentionCall& call) const;
  /// `read` of what `find` finds.
  std::optional<AttentionPlan> get(const PlanKey& key, const AttentionCall& call) const;
  /// The part of such a plan that concerns one head: for the call of this head and its keys alone.
  std::optional<AttentionPlan> get(const PlanKey& key, int64_t head,
                                   const AttentionCall& call) const;

  /// Writes the folder beside its place and renames it.
  ///
  /// throws  Error conflict when the path exists and is no empty folder, resource
  void save(const fs::path& folder) const;

  const std::string& model() const { return model_; }
  const PlanRecipe& recipe() const { return recipe_; }
  int64_t buckets() const { return buckets_; }
  size_t num_plans() const { return plans_.size(); }
  const std::map<PlanKey, size_t>& entries() const { return entries_; }

 private:
  struct Stored {
    Json shape, plan;
    TensorMap tensors;            // of plans that were put
    std::optional<size_t> shard;  // of plans in a folder, where they have tensors
  };

  PlanStore() = default;
  void read_index(const fs::path& path);
  void read_shards(const Json& json, const fs::path& path);
  void read_plans(const Json& json, const std::string& where);
  void read_entries(const Json& json, const std::string& where);
  std::string name_of(size_t number) const;
  TensorMap tensors_of(size_t number) const;

  std::string model_;
  PlanRecipe recipe_;
  int64_t buckets_ = 1;
  std::vector<Stored> plans_;
  std::map<PlanKey, size_t> entries_;
  std::map<std::string, size_t> by_sum_;  // plans that were put
  fs::path path_;                         // plan.json, where there is one
  std::vector<std::shared_ptr<const SafetensorsFile>> shards_;
};

}  // namespace fovea
