#include <algorithm>
#include <cmath>
#include <set>

#include <ATen/ATen.h>

#include "core/attention/packed_bits.h"
#include "core/attention/plan_json.h"
#include "core/attention/plan_names.h"
#include "core/check.h"
#include "core/config.h"

namespace fovea {
namespace {

constexpr int64_t kMaxBlocks = 1 << 24, kMaxTokens = int64_t{1} << 40, kMaxNumber = INT64_MAX;
constexpr size_t kMaxHeads = 4096;

class Reader {
 public:
  Reader(const TensorMap& tensors, std::string where)
      : tensors_(tensors), where_(std::move(where)) {}

  AttentionPlan plan(const Json& json) {
    Config config(json, where_);
    AttentionPlan out;
    out.planner = config.text("planner", "");
    out.q_order = order(child(config, "q_order"));
    out.kv_order = order(child(config, "kv_order"));
    for (Config& item : children(config, "branches", 4)) {
      Branch branch;
      branch.group = static_cast<size_t>(item.integer("group", 0, 0, 3));
      branch.kind = kind(item);
      finish(item);
      out.branches.push_back(std::move(branch));
    }
    for (const Json& name : array(config, "group_weights", 4)) {
      if (!name.is_null() && !name.is_string()) config.refuse("group_weights", "expected names");
      out.group_weights.push_back(name.is_null() ? at::Tensor() : tensor(name.get<std::string>()));
    }
    finish(config);
    for (const auto& [name, value] : tensors_) {
      require(used_.contains(name), ErrorCode::bad_data, where_, "tensor '", printable(name, 80),
              "' belongs to nothing");
    }
    return out;
  }

 private:
  static void finish(const Config& config) {
    Report strict(/*strict=*/true);
    config.finish(strict);
  }

  at::Tensor tensor(const std::string& name) {
    const auto found = tensors_.find(name);
    require(found != tensors_.end(), ErrorCode::bad_data, where_, "tensor '", printable(name, 80),
            "' is not there");
    used_.insert(name);
    return found->second;
  }
  // The tensor that a key names; undefined without the key.
  at::Tensor tensor(Config& config, const char* key) {
    const std::string name = config.text(key, "");
    return name.empty() ? at::Tensor() : tensor(name);
  }

  // What packed bits stand for: uint8 [.., columns].
  at::Tensor unpacked(Config& config, int64_t bits, int64_t columns) {
    const at::Tensor packed = tensor(config, "tensor");
    const int64_t bytes = (columns * bits + 7) / 8;
    if (!packed.defined()) config.refuse("tensor", "expected a name");
    require(packed.scalar_type() == at::kByte && packed.dim() > 0 && packed.size(-1) == bytes,
            ErrorCode::bad_data, config.where(), "expected U8 [.., ", bytes, "] of ", columns,
            " columns, got ", packed.scalar_type(), " ", packed.sizes());
    return unpack_bits(packed, bits, columns);
  }

  static Config child(Config& parent, const char* key) {
    parent.ignore({key});
    if (!parent.has(key)) parent.refuse(key, "expected an object");
    return {parent.json()[key], parent.where() + ": " + key};
  }
  static Json array(Config& parent, const char* key, size_t most) {
    parent.ignore({key});
    if (!parent.has(key)) return Json::array();
    const Json& out = parent.json()[key];
    if (!out.is_array() || out.size() > most) {
      parent.refuse(key, fovea::str("expected an array of up to ", most));
    }
    return out;
  }
  static std::vector<Config> children(Config& parent, const char* key, size_t most) {
    std::vector<Config> out;
    for (const Json& item : array(parent, key, most)) {
      out.emplace_back(item, fovea::str(parent.where(), ": ", key, " ", out.size()));
    }
    return out;
  }
  template <typename Value, size_t count>
  static Value named(Config& config, const char* key, const Name<Value> (&names)[count]) {
    const std::string text = config.text(key, "");
    for (const auto& entry : names) {
      if (text == entry.name) return entry.value;
    }
    config.refuse(key, "expected a known name");
  }
  static double number(Config& config, const char* key) {
    config.ignore({key});
    const Json value = config.has(key) ? config.json()[key] : Json();
    if (value == "inf") return HUGE_VAL;
    if (value == "-inf") return -HUGE_VAL;
    if (value == "nan") return NAN;
    if (!value.is_number()) config.refuse(key, "expected a number");
    return value.get<double>();
  }

  TokenOrder order(Config config) {
    const std::string kind = config.text("kind", "");
    TokenOrder out;
    if (kind == "tiles") {
      const auto tile = config.integers("tile", {}, 1, kMaxTokens);
      if (tile.size() != 3) config.refuse("tile", "expected three sides");
      out = TokenOrder::tiles({tile[0], tile[1], tile[2]});
    } else if (kind == "axes") {
      std::vector<std::array<int64_t, 3>> heads;
      for (const Json& head : array(config, "axes", kMaxHeads)) {
        const auto axes = head.is_string() ? axes_from_name(head.get<std::string>()) : std::nullopt;
        if (!axes) config.refuse("axes", "expected orders such as \"HWF\"");
        heads.push_back(*axes);
      }
      out = TokenOrder::axes(std::move(heads));
    } else if (kind == "index") {
      out = TokenOrder::index(tensor(config, "rows"));
    } else if (kind != "identity") {
      config.refuse("kind", "expected identity, tiles, axes or index");
    }
    finish(config);
    return out;
  }

  BlockAxis blocks(Config& parent, const char* key) {
    parent.ignore({key});
    if (!parent.has(key)) return {};
    Config config = child(parent, key);
    if (config.has("offsets")) {
      const at::Tensor offsets = tensor(config, "offsets");
      BlockAxis out =
          BlockAxis::from_offsets(offsets, config.integer("max_size", 0, 0, kMaxTokens));
      finish(config);
      return out;
    }
    std::vector<int64_t> offsets = {0};
    for (const Json& run : array(config, "sizes", kMaxBlocks)) {
      const Config item({{"run", run}}, config.where());
      const auto pair = Config(item).integers("run", {}, 0, kMaxTokens);
      const bool fits =
          pair.size() == 2 && pair[0] + static_cast<int64_t>(offsets.size()) <= kMaxBlocks;
      if (!fits || offsets.back() > kMaxTokens) {
        config.refuse("sizes", "expected pairs of a count and a size");
      }
      for (int64_t i = 0; i < pair[0] && offsets.back() <= kMaxTokens; ++i) {
        offsets.push_back(offsets.back() + pair[1]);
      }
    }
    finish(config);
    return BlockAxis::from_host(std::move(offsets));
  }

  Predicate predicate(Config& config) {
    const std::string kind = config.text("kind", "");
    if (kind == "window") {
      WindowPredicate out;
      std::vector<Config> axes = children(config, "axes", 3);
      if (axes.size() != 3) config.refuse("axes", "expected three");
      for (size_t i = 0; i < 3; ++i) {
        out.axes[i].size = axes[i].integer("size", 0, 0, kMaxTokens);
        out.axes[i].stride = axes[i].integer("stride", 1, 1, kMaxTokens);
        out.axes[i].dilation = axes[i].integer("dilation", 1, 1, kMaxTokens);
        out.axes[i].causal = axes[i].boolean("causal", false);
        finish(axes[i]);
      }
      return out;
    }
    if (kind == "disc") return DiscPredicate{number(config, "radius")};
    if (kind == "causal") return CausalPredicate{config.boolean("in_order", false)};
    if (kind == "band") {
      const int64_t width = config.integer("width", 0, -kMaxNumber, kMaxNumber);
      return BandPredicate{width, config.boolean("in_order", false)};
    }
    if (kind != "stored") {
      config.refuse("kind", "expected window, disc, band, causal or stored");
    }
    const int64_t columns = config.integer("columns", 0, 0, kMaxTokens);
    return StoredPredicate{unpacked(config, 1, columns).to(at::kBool)};
  }

  Selection selection(Config config) {
    Selection out;
    out.q_blocks = blocks(config, "q_blocks");
    out.kv_blocks = blocks(config, "kv_blocks");
    for (Config& item : children(config, "summaries", 249)) {
      Summary summary;
      summary.pool = item.integer("pool", 0, 0, kMaxTokens);
      summary.log_count = item.boolean("log_count", true);
      finish(item);
      out.summaries.push_back(summary);
    }
    if (config.has("classes")) {
      Config map = child(config, "classes");
      const int64_t bits = map.integer("bits", 0, 1, 8);
      if (bits != class_bits(out.summaries.size())) map.refuse("bits", "other bits expected");
      out.classes = unpacked(map, bits, out.kv_blocks.num_blocks());
      finish(map);
    }
    for (Config& item : children(config, "predicates", 64)) {
      out.predicates.push_back(predicate(item));
      finish(item);
    }
    finish(config);
    return out;
  }

  static Quantized operand(Config config) {
    Quantized out;
    out.format = named(config, "format", kFormats);
    out.unit = named(config, "unit", kUnits);
    out.group = config.integer("group", 0, 0, kMaxTokens);
    finish(config);
    return out;
  }
  static Precision precision(Config config) {
    Precision out;
    out.q = operand(child(config, "q"));
    out.k = operand(child(config, "k"));
    out.v = operand(child(config, "v"));
    out.p = operand(child(config, "p"));
    out.smooth_k = config.boolean("smooth_k", false);
    finish(config);
    return out;
  }

  decltype(Branch::kind) kind(Config& config) {
    const std::string name = config.text("kind", "");
    if (name == "softmax") return softmax(config);
    if (name == "linear") return linear(config);
    if (name == "reuse") return ReuseBranch{tensor(config, "out"), tensor(config, "lse")};
    if (name != "pooled_values") {
      config.refuse("kind", "expected softmax, linear, pooled_values or reuse");
    }
    PooledValuesBranch out;
    out.q_blocks = blocks(config, "q_blocks");
    out.kv_blocks = blocks(config, "kv_blocks");
    out.weights = tensor(config, "weights");
    return out;
  }
  SoftmaxBranch softmax(Config& config) {
    SoftmaxBranch out;
    out.selection = selection(child(config, "selection"));
    if (config.has("keys")) {
      Config keys = child(config, "keys");
      out.keys = GivenKeys{tensor(keys, "k"), tensor(keys, "v"), tensor(keys, "bias")};
      finish(keys);
    }
    if (config.has("precision")) out.precision = precision(child(config, "precision"));
    return out;
  }
  LinearBranch linear(Config& config) {
    LinearBranch out;
    out.feature_map = named(config, "feature_map", kFeatureMaps);
    if (const auto of = config.optional_integer("complement_of", 0, 3)) {
      out.complement_of = static_cast<size_t>(*of);
    }
    out.epsilon = number(config, "epsilon");
    out.proj_weight = tensor(config, "proj_weight");
    out.proj_bias = tensor(config, "proj_bias");
    return out;
  }

  const TensorMap& tensors_;
  std::string where_;
  std::set<std::string> used_;
};

}  // namespace

AttentionPlan plan_from_json(const Json& json, const TensorMap& tensors, const std::string& where) {
  try {
    return Reader(tensors, where).plan(json);
  } catch (const Error& error) {
    // What makes orders and blocks takes its arguments for a caller's.
    if (error.code() != ErrorCode::usage) throw;
    throw Error(ErrorCode::bad_data, where, error.where() + ": " + error.reason());
  }
}

std::optional<std::array<int64_t, 3>> axes_from_name(const std::string& name) {
  std::string sorted = name;
  std::sort(sorted.begin(), sorted.end());
  if (sorted != "FHW") return std::nullopt;
  std::array<int64_t, 3> out{};
  for (size_t i = 0; i < 3; ++i) out[i] = name[i] == 'F' ? 0 : name[i] == 'H' ? 1 : 2;
  return out;
}

}  // namespace fovea
