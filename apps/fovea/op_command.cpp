#include "apps/fovea/op_command.h"

#include <algorithm>
#include <charconv>
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

/// Values by option name, defaults included; nothing for "none".
using Settings = std::map<std::string, std::optional<double>>;

double parse_number(const std::string& where, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && std::isfinite(value),
          ErrorCode::usage, where, "expected a finite number, got '", printable(text), "'");
  return value;
}

Settings parse_settings(const OpEntry& entry, const std::vector<std::string>& texts) {
  Settings settings;
  for (const OpOption& option : entry.options) {
    if (option.default_value == "none") {
      settings[option.name] = std::nullopt;
    } else {
      settings[option.name] = parse_number(option.name, option.default_value);
    }
  }
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    require(equals != std::string::npos && equals > 0, ErrorCode::usage, "--set",
            "expected KEY=VALUE, got '", printable(text), "'");
    const std::string key = text.substr(0, equals);
    std::string known;
    for (const OpOption& option : entry.options) known += " " + option.name;
    require(settings.contains(key), ErrorCode::usage, "--set", "operator ", entry.name,
            " has no option '", printable(key), "'; it has:", known.empty() ? " none" : known);
    settings[key] = parse_number(str("--set ", key), text.substr(equals + 1));
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

at::Tensor call_op(const OpEntry& entry, const TensorMap& tensors, const Settings& settings) {
  const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow(("fovea::" + entry.name).c_str(), "");
  std::vector<c10::IValue> stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    const std::string& name = argument.name();
    if (const auto tensor = tensors.find(name); tensor != tensors.end()) {
      stack.emplace_back(tensor->second);
    } else if (const auto setting = settings.find(name);
               setting != settings.end() && setting->second) {
      stack.emplace_back(*setting->second);
    } else {
      stack.emplace_back();  // an optional argument left out
    }
  }
  const c10::NoGradGuard no_grad;
  op.callBoxed(stack);
  return stack.at(0).toTensor();
}

}  // namespace

const std::vector<OpEntry>& op_table() {
  static const char* kAny = "[..., dim], fp32 / fp16 / bf16 / fp64";
  static const OpOption kEps{"eps", "added to the mean square or variance", "1e-6"};
  static const OpTensor kCos{"cos", "[seq_len, head_dim / 2], fp32"};
  static const OpTensor kSin{"sin", "[seq_len, head_dim / 2], fp32"};
  static const OpTensor kVideo{"x", "[batch, ..., dim], fp32 / fp16 / bf16 / fp64"};
  static const std::vector<OpEntry> table = {
      {"attention",
       "dense softmax attention",
       {{"q", "[batch, num_heads, q_len, head_dim]"},
        {"k", "[batch, num_kv_heads, kv_len, head_dim], dtype of q"},
        {"v", "[batch, num_kv_heads, kv_len, value_dim], dtype of q"}},
       {"out", "[batch, num_heads, q_len, value_dim], dtype of q"},
       {{"sm_scale", "multiplies q·k; none: 1 / sqrt(head_dim)", "none"}}},
      {"gate_residual",
       "x + y * gate in fp32, rounded once",
       {kVideo, {"y", "shape and dtype of x"}, {"gate", "[batch or 1, dim], fp32"}},
       {"out", "as x"},
       {}},
      {"layer_norm",
       "layer norm over the last dimension in fp32, rounded once",
       {{"x", kAny}, {"weight", "[dim]", false}, {"bias", "[dim]", false}},
       {"out", "as x"},
       {kEps}},
      {"layer_norm_modulate",
       "layer norm without weights, then n * (1 + scale) + shift, rounded once",
       {kVideo, {"scale", "[batch or 1, dim], fp32"}, {"shift", "[batch or 1, dim], fp32"}},
       {"out", "as x"},
       {kEps}},
      {"rms_norm",
       "x / sqrt(mean(x^2) + eps) * weight over the last dimension in fp32, rounded once",
       {{"x", kAny}, {"weight", "[dim]", false}},
       {"out", "as x"},
       {kEps}},
      {"rms_norm_rope",
       "rms_norm over all heads, rounded, then rope",
       {{"x", "[batch, seq_len, num_heads * head_dim]"},
        {"weight", "[num_heads * head_dim]", false},
        kCos,
        kSin},
       {"out", "[batch, seq_len, num_heads, head_dim], dtype of x"},
       {kEps}},
      {"rope",
       "rotary position embedding on interleaved pairs in fp32, rounded once",
       {{"x", "[batch, seq_len, num_heads, head_dim]"}, kCos, kSin},
       {"out", "as x"},
       {}},
  };
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
    text += str("  out  ", entry.output.name, "  ", entry.output.help, "\n");
    for (const OpOption& option : entry.options) {
      text += str("  set  ", option.name, "=", option.default_value, "  ", option.help, "\n");
    }
  }
  return text;
}

Json list_ops_json() {
  Json list = Json::array();
  for (const OpEntry& entry : op_table()) {
    Json inputs = Json::array(), options = Json::array();
    for (const OpTensor& input : entry.inputs) {
      inputs.push_back({{"name", input.name}, {"help", input.help}, {"required", input.required}});
    }
    for (const OpOption& option : entry.options) {
      options.push_back({{"name", option.name},
                         {"type", "float"},
                         {"default", option.default_value},
                         {"help", option.help}});
    }
    list.push_back(
        {{"name", entry.name},
         {"help", entry.help},
         {"inputs", inputs},
         {"outputs", Json::array({{{"name", entry.output.name}, {"help", entry.output.help}}})},
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
    save_tensors(run.out, {{entry.output.name, call_op(entry, inputs, settings)}}, run.overwrite);
  });
}

}  // namespace fovea::apps
