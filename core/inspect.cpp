#include "core/inspect.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <optional>

#include "core/check.h"
#include "core/config.h"
#include "core/weight_index.h"

namespace fovea {
namespace {

constexpr std::string_view kIndexEnd = ".safetensors.index.json";

// Sums over the tensors of one dtype.
struct PerType {
  uint64_t tensors = 0;
  uint64_t parameters = 0;
  uint64_t bytes = 0;

  void add(const PerType& other) {
    tensors += other.tensors;
    parameters += other.parameters;
    bytes += other.bytes;
  }
};

// Sums over tensors.
struct Totals {
  uint64_t tensors = 0;
  uint64_t parameters = 0;
  uint64_t bytes = 0;  // as stored
  uint64_t fp32 = 0;   // bytes when floating tensors are cast to that type
  uint64_t bf16 = 0;
  std::map<std::string, PerType> dtypes;

  void add(const StoredTensor& tensor) {
    const uint64_t count = static_cast<uint64_t>(tensor.numel());
    const uint64_t stored = tensor.end - tensor.begin;
    tensors += 1;
    parameters += count;
    bytes += stored;
    fp32 += is_floating(tensor.type) ? 4 * count : stored;
    bf16 += is_floating(tensor.type) ? 2 * count : stored;
    dtypes[std::string(stored_type_name(tensor.type))].add({1, count, stored});
  }

  void merge(const Totals& other) {
    tensors += other.tensors;
    parameters += other.parameters;
    bytes += other.bytes;
    fp32 += other.fp32;
    bf16 += other.bf16;
    for (const auto& [name, sums] : other.dtypes) dtypes[name].add(sums);
  }

  void write(Json& out) const {
    out["num_tensors"] = tensors;
    out["parameters"] = parameters;
    out["bytes"] = bytes;
    out["dtypes"] = Json::object();
    for (const auto& [name, sums] : dtypes) {
      out["dtypes"][name] = {
          {"tensors", sums.tensors}, {"parameters", sums.parameters}, {"bytes", sums.bytes}};
    }
    out["memory_bytes"] = {{"fp32", fp32}, {"bf16", bf16}};
  }
};

std::string human_bytes(uint64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  char out[32];
  std::snprintf(out, sizeof out, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return out;
}

std::string shown(const fs::path& path) { return printable(path.string(), 4096); }

// 1418996800 as "1,418,996,800".
std::string human_count(uint64_t count) {
  std::string out = std::to_string(count);
  for (size_t i = out.size(); i > 3; i -= 3) out.insert(i - 3, ",");
  return out;
}

std::string totals_text(const Totals& totals) {
  std::string dtypes;
  for (const auto& [name, sums] : totals.dtypes) {
    dtypes += str(dtypes.empty() ? "" : ", ", name, " ", human_bytes(sums.bytes));
  }
  return str("  ", human_count(totals.parameters), " parameters in ", totals.tensors, " tensors",
             dtypes.empty() ? "" : " (" + dtypes + ")", "\n  memory needed: fp32 ",
             human_bytes(totals.fp32), ", bf16 ", human_bytes(totals.bf16), "\n");
}

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Description describe_file(const fs::path& path) {
  const SafetensorsFile file(path);
  Description out;
  out.json = {{"kind", "safetensors"}, {"path", shown(path)}};
  Totals totals;
  Json tensors = Json::array();
  std::string lines;
  for (const StoredTensor& tensor : file.tensors()) {
    totals.add(tensor);
    tensors.push_back({{"name", tensor.name},
                       {"dtype", stored_type_name(tensor.type)},
                       {"shape", tensor.shape},
                       {"bytes", tensor.end - tensor.begin}});
    lines += str("  ", printable(tensor.name), "  ", stored_type_name(tensor.type), " ",
                 dump(tensor.shape), "  ", human_bytes(tensor.end - tensor.begin), "\n");
  }
  totals.write(out.json);
  out.json["metadata"] = file.metadata();
  out.json["tensors"] = std::move(tensors);
  out.text = str("safetensors file ", shown(path), "\n", totals_text(totals));
  for (const auto& [key, value] : file.metadata()) {
    out.text += str("  metadata ", printable(key), ": ", printable(value), "\n");
  }
  out.text += lines;
  return out;
}

// The JSON file of options in a component folder, if there is one.
std::optional<fs::path> config_path(const fs::path& folder) {
  for (const char* name : {"config.json", "scheduler_config.json", "preprocessor_config.json",
                           "tokenizer_config.json"}) {
    std::error_code ignored;
    if (fs::exists(folder / name, ignored)) return folder / name;
  }
  return std::nullopt;
}

std::string class_of(const Json& config) {
  if (config.contains("_class_name") && config["_class_name"].is_string()) {
    return config["_class_name"].get<std::string>();
  }
  const auto names = config.find("architectures");
  if (names != config.end() && names->is_array() && !names->empty() && names->front().is_string()) {
    return names->front().get<std::string>();
  }
  for (const char* key : {"tokenizer_class", "image_processor_type"}) {
    if (config.contains(key) && config[key].is_string()) return config[key].get<std::string>();
  }
  return "";
}

// Options as "key value, ..."; what is long (tokens of a tokenizer, ...) is left to the JSON.
std::string config_text(const Json& config) {
  std::string out;
  for (const auto& [key, value] : config.items()) {
    if (key.starts_with('_') || value.is_object() || value.is_null()) continue;
    const std::string shown = dump(value);
    if (shown.size() > 80) continue;
    out += str(out.empty() ? "" : ", ", printable(key, 60), " ", printable(shown));
  }
  return out.empty() ? "" : "  config: " + out + "\n";
}

// Adds what `index` lists to a component's JSON, its text and `totals`.
void describe_index(const WeightIndex& index, Description& out, Totals& totals) {
  Json files = Json::array();
  std::string names;
  for (const SafetensorsFile& file : index.files()) {
    const std::string name = printable(file.path().filename().string());
    files.push_back(
        {{"name", name}, {"num_tensors", file.tensors().size()}, {"bytes", file.data_bytes()}});
    names += str(names.empty() ? "" : ", ", name, " (", human_bytes(file.data_bytes()), ")");
  }
  for (const WeightIndex::Entry& entry : index.entries()) totals.add(*entry.tensor);
  totals.write(out.json);
  out.json["variant"] = index.variant();
  out.json["files"] = std::move(files);
  out.text += totals_text(totals) + "  files: " + names + "\n";
}

void describe_weights(const fs::path& folder, Description& out, Totals& totals) {
  for (const char* stem : {"diffusion_pytorch_model", "model"}) {
    if (has_weights(folder, stem)) return describe_index(WeightIndex(folder, stem), out, totals);
  }
  for (const fs::path& path : unread_weight_files(folder)) {
    const std::string name = printable(path.filename().string());
    out.json["unread_files"].push_back(name);
    out.text += "  " + name + ": not read, weights have to be safetensors files\n";
  }
}

// A folder with the options and weights of one class; `title` begins its text.
Description describe_component(const fs::path& folder, const std::string& title,
                               const std::string& class_name, Totals& totals) {
  Description out;
  out.json = {{"kind", "component"}, {"path", shown(folder)}};
  Json config = Json::object();
  if (const std::optional<fs::path> path = config_path(folder)) config = Config::read(*path).json();
  const std::string found_class = class_name.empty() ? class_of(config) : class_name;
  out.json["class"] = found_class;
  out.text = title + (found_class.empty() ? "" : ": " + printable(found_class)) + "\n";
  describe_weights(folder, out, totals);
  out.text += config_text(config);
  out.json["config"] = std::move(config);
  return out;
}

Description describe_model(const fs::path& folder) {
  const Config index = Config::read(folder / "model_index.json");
  const std::string class_name = class_of(index.json());
  Description out;
  out.json = {{"kind", "model"}, {"path", shown(folder)}, {"class", class_name}};
  out.text = str("model folder ", shown(folder), ": ", printable(class_name), "\n");
  Totals sum;
  Json components = Json::object();
  Json options = Json::object();
  for (const auto& [name, value] : index.json().items()) {
    const bool component = !name.starts_with('_') && value.is_array() && value.size() == 2;
    if (!component) {
      options[name] = value;
      continue;
    }
    if (!value[1].is_string()) continue;  // [null, null]: an optional part that is left out
    const bool plain_name =
        name.find('/') == std::string::npos && name != "." && name != ".." && !name.empty();
    if (!plain_name) index.refuse(name, "expected a folder name as key");
    const std::string component_class = value[1].get<std::string>();
    std::error_code ignored;
    if (!fs::is_directory(folder / name, ignored)) {
      components[name] = {{"class", component_class}, {"missing", true}};
      out.text += str(name, ": ", printable(component_class), ", its folder is missing\n");
      continue;
    }
    Totals totals;
    Description part = describe_component(folder / name, printable(name), component_class, totals);
    components[name] = std::move(part.json);
    out.text += part.text;
    sum.merge(totals);
  }
  out.text += "total\n" + totals_text(sum);
  sum.write(out.json);
  out.json["config"] = std::move(options);
  out.json["components"] = std::move(components);
  return out;
}

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

}  // namespace

Description describe(const fs::path& path) {
  std::error_code ignored;
  require(is_there(path), ErrorCode::bad_data, path.string(), "no such file or folder");
  const std::string name = path.filename().string();
  if (fs::is_directory(path, ignored)) {
    if (is_there(path / "model_index.json")) return describe_model(path);
    Totals totals;
    Description out = describe_component(path, "component folder " + shown(path), "", totals);
    const bool empty =
        totals.tensors == 0 && out.json["config"].empty() && !out.json.contains("unread_files");
    require(!empty, ErrorCode::bad_data, path.string(),
            "holds neither model_index.json nor a config or safetensors weights");
    return out;
  }
  require(name.ends_with(".safetensors") || name.ends_with(kIndexEnd), ErrorCode::bad_data,
          path.string(),
          "expected a .safetensors file, a .safetensors.index.json or a model folder");
  if (name.ends_with(".safetensors")) return describe_file(path);
  Totals totals;
  Description out;
  out.json = {{"kind", "component"}, {"path", shown(path)}};
  out.text = "shards of " + shown(path) + "\n";
  describe_index(WeightIndex(path), out, totals);
  return out;
}

}  // namespace fovea
