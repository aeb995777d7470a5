#include "apps/fovea/op_command.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/guard.h"
#include "core/weights.h"

namespace fovea::apps {
namespace {

const OpEntry& find_op(const std::string& name) {
  const auto& table = op_table();
  const auto found =
      std::find_if(table.begin(), table.end(), [&](const OpEntry& e) { return e.name == name; });
  if (found != table.end()) return *found;
  std::string names;
  for (const OpEntry& entry : table) names += (names.empty() ? "" : ", ") + entry.name;
  throw Error(ErrorCode::usage, "op",
              str("unknown operator '", printable(name), "': expected one of ", names));
}

/// Values by option name, defaults included.
using Settings = std::map<std::string, c10::IValue>;

c10::OperatorHandle operator_of(const OpEntry& entry) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("fovea::" + entry.name).c_str(), "");
}

/// `text` as the type of an operator's argument says: a number, true or false, a word, or a list
/// with commas.
c10::IValue parse_value(const std::string& where, const c10::Type& type, const std::string& text) {
  const auto need = [&](bool good, const char* what) {
    require(good, ErrorCode::usage, where, "expected ", what, ", got '", printable(text), "'");
  };
  if (type.kind() == c10::TypeKind::OptionalType) {
    if (text == "none") return {};
    return parse_value(where, *type.containedType(0), text);
  }
  if (type.kind() == c10::TypeKind::StringType) return c10::IValue(text);
  if (type.kind() == c10::TypeKind::ListType) {
    const Json list = Json::parse("[" + text + "]", nullptr, /*allow_exceptions=*/false);
    const bool of_flags = type.containedType(0)->kind() == c10::TypeKind::BoolType;
    need(list.is_array() && !list.empty() &&
             std::all_of(
                 list.begin(), list.end(),
                 [&](const Json& x) { return of_flags ? x.is_boolean() : x.is_number_integer(); }),
         of_flags ? "true and false with commas" : "integers with commas");
    if (of_flags) {
      c10::List<bool> flags;
      for (const Json& flag : list) flags.push_back(flag.get<bool>());
      return flags;
    }
    return c10::IValue(list.get<std::vector<int64_t>>());
  }
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  switch (type.kind()) {
    case c10::TypeKind::IntType:
      need(value.is_number_integer(), "an integer");
      return value.get<int64_t>();
    case c10::TypeKind::BoolType:
      need(value.is_boolean(), "true or false");
      return value.get<bool>();
    default:
      need(value.is_number() && std::isfinite(value.get<double>()), "a finite number");
      return value.get<double>();
  }
}

Settings parse_settings(const OpEntry& entry, const std::vector<std::string>& texts) {
  const c10::OperatorHandle op = operator_of(entry);
  const auto type_of = [&](const std::string& key) {
    const auto index = op.schema().argumentIndexWithName(key);
    FOVEA_ASSERT(index.has_value(), entry.name, " has no argument ", key);
    return op.schema().arguments()[static_cast<size_t>(*index)].type();
  };
  Settings settings;
  for (const OpOption& option : entry.options) {
    if (option.default_value.empty()) continue;  // must be given
    settings[option.name] = parse_value(option.name, *type_of(option.name), option.default_value);
  }
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    require(equals != std::string::npos && equals > 0, ErrorCode::usage, "--set",
            "expected KEY=VALUE, got '", printable(text), "'");
    const std::string key = text.substr(0, equals);
    std::string known;
    bool is_known = false;
    for (const OpOption& option : entry.options) {
      known += " " + option.name;
      is_known = is_known || option.name == key;
    }
    require(is_known, ErrorCode::usage, "--set", "operator ", entry.name, " has no option '",
            printable(key), "'; it has:", known.empty() ? " none" : known);
    settings[key] = parse_value(str("--set ", key), *type_of(key), text.substr(equals + 1));
  }
  for (const OpOption& option : entry.options) {
    require(settings.contains(option.name), ErrorCode::usage, "--set", "operator ", entry.name,
            " needs ", option.name, "=...: ", option.help);
  }
  return settings;
}

/// The inputs of `entry` from the file, moved to the device.
TensorMap read_inputs(const OpEntry& entry, const OpRun& run) {
  TensorMap tensors = load_tensors(run.in);
  for (const OpTensor& input : entry.inputs) {
    require(!input.required || tensors.contains(input.name), ErrorCode::bad_data, run.in.string(),
            "tensor '", input.name, "' is missing: operator ", entry.name, " expects ", input.help);
  }
  for (auto& [name, tensor] : tensors) {
    const bool known =
        std::any_of(entry.inputs.begin(), entry.inputs.end(),
                    [&, &n = name](const OpTensor& input) { return input.name == n; });
    require(known, ErrorCode::bad_data, run.in.string(), "tensor '", printable(name),
            "' is no input of operator ", entry.name);
    tensor = tensor.to(run.device);
  }
  return tensors;
}

TensorMap call_op(const OpEntry& entry, const TensorMap& tensors, const Settings& settings) {
  const c10::OperatorHandle op = operator_of(entry);
  std::vector<c10::IValue> stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const std::string& name = argument.name();
    if (const auto tensor = tensors.find(name); tensor != tensors.end()) {
      stack.emplace_back(tensor->second);
    } else if (const auto setting = settings.find(name); setting != settings.end()) {
      stack.push_back(setting->second);
    } else {
      stack.push_back(argument.default_value().value_or(c10::IValue()));
    }
  }
  const c10::NoGradGuard no_grad;
  op.callBoxed(stack);
  FOVEA_ASSERT(stack.size() == entry.outputs.size());
  TensorMap results;
  for (size_t i = 0; i < stack.size(); ++i) {
    results[entry.outputs[i].name] = stack[i].toTensor();
  }
  return results;
}

}  // namespace

namespace {

std::vector<OpEntry> attention_entries() {
  const OpOption kScale{"scale", "multiplies q·k; none: 1 / sqrt(head_dim)", "none"};
  static const OpOption kExecutor{"executor", "auto, checked, or the name of one", "auto"};
  static const OpTensor kQ{"q", "[batch, num_heads, q_len, head_dim]"};
  static const OpTensor kK{"k", "[batch, num_kv_heads, kv_len, head_dim], dtype of q"};
  static const OpTensor kV{"v", "[batch, num_kv_heads, kv_len, value_dim], dtype of q"};
  static const OpTensor kBias{
      "bias", "added to the logits, broadcasts to [batch, num_heads, q_len, kv_len]", false};
  static const std::vector<OpTensor> kAttended = {
      {"out", "[batch, num_heads, q_len, value_dim], dtype of q"},
      {"lse", "[batch, num_heads, q_len], fp32, of fp64 fp64: natural log-sum-exp"}};
  return {{"attention",
           "softmax attention over all keys, or the blocks of a mask",
           {kQ,
            kK,
            kV,
            {"block_mask",
             "uint8 [1, 1 or num_heads, q blocks, kv blocks]: 0 skip, 1 exact, 2 mean", false},
            {"q_order", "int32 [1, 1 or num_heads, q_len]: the row of each position", false},
            {"kv_order", "int32 [1, 1 or num_kv_heads, kv_len]", false},
            {"q_offsets", "int32 [1, 1, q blocks + 1], instead of blocks of one size", false},
            {"kv_offsets", "int32 [1, 1, kv blocks + 1]", false},
            {"kv_len", "int64 [batch]: keys that are no padding", false},
            kBias},
           kAttended,
           {{"block", "rows and keys of a block of the mask", "128,128"},
            kScale,
            {"precision", "auto", "auto"},
            kExecutor,
            {"is_causal", "hides keys after the query's row", "false"}}},
          {"neighborhood_attention",
           "softmax attention to a window of tokens around each, in a grid of 1 to 3 axes",
           {kQ,
            kK,
            kV,
            kBias,
            {"extra_k", "[batch, num_kv_heads, extra, head_dim]: keys that all queries see", false},
            {"extra_v", "[batch, num_kv_heads, extra, value_dim]", false}},
           kAttended,
           {{"size", "tokens along each axis, the last one fastest", ""},
            {"window", "tokens of the window along each axis", ""},
            {"stride", "queries along each axis that share a window", ""},
            {"dilation", "distance of a window's tokens along each axis", ""},
            {"causal", "for each axis, whether the window ends with the query", ""},
            kScale}}};
}

}  // namespace

const std::vector<OpEntry>& op_table() {
  static const char* kAny = "[..., dim], fp32 / fp16 / bf16 / fp64";
  static const OpOption kEps{"eps", "added to the mean square or variance", "1e-6"};
  static const OpTensor kCos{"cos", "[seq_len, head_dim / 2], fp32"};
  static const OpTensor kSin{"sin", "[seq_len, head_dim / 2], fp32"};
  static const OpTensor kVideo{"x", "[batch, ..., dim], fp32 / fp16 / bf16 / fp64"};
  static const std::vector<OpEntry> rows = {
      {"gate_residual",
       "x + y * gate in fp32, rounded once",
       {kVideo, {"y", "shape and dtype of x"}, {"gate", "[batch or 1, dim], fp32"}},
       {{"out", "as x"}},
       {}},
      {"layer_norm",
       "layer norm over the last dimension in fp32, rounded once",
       {{"x", kAny}, {"weight", "[dim]", false}, {"bias", "[dim]", false}},
       {{"out", "as x"}},
       {kEps}},
      {"layer_norm_modulate",
       "layer norm without weights, then n * (1 + scale) + shift, rounded once",
       {kVideo, {"scale", "[batch or 1, dim], fp32"}, {"shift", "[batch or 1, dim], fp32"}},
       {{"out", "as x"}},
       {kEps}},
      {"rms_norm",
       "x / sqrt(mean(x^2) + eps) * weight over the last dimension in fp32, rounded once",
       {{"x", kAny}, {"weight", "[dim]", false}},
       {{"out", "as x"}},
       {kEps}},
      {"rms_norm_rope",
       "rms_norm over all heads, rounded, then rope",
       {{"x", "[batch, seq_len, num_heads * head_dim]"},
        {"weight", "[num_heads * head_dim]", false},
        kCos,
        kSin},
       {{"out", "[batch, seq_len, num_heads, head_dim], dtype of x"}},
       {kEps}},
      {"rope",
       "rotary position embedding on interleaved pairs in fp32, rounded once",
       {{"x", "[batch, seq_len, num_heads, head_dim]"}, kCos, kSin},
       {{"out", "as x"}},
       {}},
  };
  static const std::vector<OpEntry> table = [] {
    std::vector<OpEntry> all = attention_entries();
    all.insert(all.end(), rows.begin(), rows.end());
    std::sort(all.begin(), all.end(),
              [](const OpEntry& a, const OpEntry& b) { return a.name < b.name; });
    return all;
  }();
  return table;
}

std::string list_ops() {
  std::string text;
  for (const OpEntry& entry : op_table()) {
    text += str(entry.name, ": ", entry.help, "\n");
    for (const OpTensor& input : entry.inputs) {
      text +=
          str("  in   ", input.name, "  ", input.help, input.required ? "" : " (optional)", "\n");
    }
    for (const OpTensor& output : entry.outputs) {
      text += str("  out  ", output.name, "  ", output.help, "\n");
    }
    for (const OpOption& option : entry.options) {
      text += str("  set  ", option.name, "=", option.default_value, "  ", option.help, "\n");
    }
  }
  return text;
}

namespace {

std::string option_type(const OpEntry& entry, const OpOption& option) {
  const c10::OperatorHandle op = operator_of(entry);
  const auto index = op.schema().argumentIndexWithName(option.name);
  FOVEA_ASSERT(index.has_value(), entry.name, " has no argument ", option.name);
  return op.schema().arguments()[static_cast<size_t>(*index)].type()->str();
}

}  // namespace

Json list_ops_json() {
  Json list = Json::array();
  for (const OpEntry& entry : op_table()) {
    Json inputs = Json::array(), outputs = Json::array(), options = Json::array();
    for (const OpTensor& input : entry.inputs) {
      inputs.push_back({{"name", input.name}, {"help", input.help}, {"required", input.required}});
    }
    for (const OpTensor& output : entry.outputs) {
      outputs.push_back({{"name", output.name}, {"help", output.help}});
    }
    for (const OpOption& option : entry.options) {
      options.push_back({{"name", option.name},
                         {"type", option_type(entry, option)},
                         {"default", option.default_value},
                         {"help", option.help}});
    }
    list.push_back({{"name", entry.name},
                    {"help", entry.help},
                    {"inputs", inputs},
                    {"outputs", outputs},
                    {"options", options}});
  }
  return list;
}

void run_op(const OpRun& run) {
  const OpEntry& entry = find_op(run.name);
  const Settings settings = parse_settings(entry, run.settings);
  check_output_path(run.out, run.overwrite);
  guarded("op " + entry.name, [&] {
    const TensorMap inputs = read_inputs(entry, run);
    save_tensors(run.out, call_op(entry, inputs, settings), run.overwrite);
  });
}

}  // namespace fovea::apps
