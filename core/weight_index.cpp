#include "core/weight_index.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <set>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/json.h"

namespace fovea {
namespace {

constexpr std::string_view kFileEnd = ".safetensors";
constexpr std::string_view kIndexEnd = ".safetensors.index.json";

struct Location {
  fs::path path;
  std::string variant;
};

bool is_there(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    files.push_back(it->path());
  }
  require(!error, ErrorCode::bad_data, folder.string(),
          "cannot list the folder: ", error.message());
  std::sort(files.begin(), files.end());
  return files;
}

// The text between `prefix` and `suffix` of `name`, if it is a word; variants are "fp16", "bf16",
// ...
std::optional<std::string> word_between(const std::string& name, const std::string& prefix,
                                        const std::string& suffix) {
  if (name.size() <= prefix.size() + suffix.size() || !name.starts_with(prefix) ||
      !name.ends_with(suffix)) {
    return std::nullopt;
  }
  std::string word = name.substr(prefix.size(), name.size() - prefix.size() - suffix.size());
  const bool is_word = std::all_of(word.begin(), word.end(),
                                   [](unsigned char c) { return std::isalnum(c) || c == '_'; });
  return is_word ? std::optional(word) : std::nullopt;
}

std::optional<Location> locate_variant(const fs::path& folder, const std::string& stem) {
  std::map<std::string, Location> found;
  for (const fs::path& path : files_in(folder)) {
    const std::string name = path.filename().string();
    if (const auto variant = word_between(name, stem + ".", std::string(kFileEnd))) {
      found.insert({*variant, {path, *variant}});
    }
    // The index's variant comes before ".json"; older versions wrote it before ".safetensors".
    auto variant = word_between(name, stem + ".safetensors.index.", ".json");
    if (!variant) variant = word_between(name, stem + ".", std::string(kIndexEnd));
    if (variant) found[*variant] = {path, *variant};
  }
  if (found.empty()) return std::nullopt;
  const std::string names = [&] {
    std::string list;
    for (const auto& [variant, location] : found) list += (list.empty() ? "" : ", ") + variant;
    return list;
  }();
  require(found.size() == 1, ErrorCode::bad_data,
          (folder / (stem + std::string(kFileEnd))).string(),
          "no such file, and several variants are there: ", names);
  return found.begin()->second;
}

std::optional<Location> locate(const fs::path& folder, const std::string& stem) {
  const Location single{folder / (stem + std::string(kFileEnd)), ""};
  const Location index{folder / (stem + std::string(kIndexEnd)), ""};
  const bool index_first = stem == "diffusion_pytorch_model";
  for (const Location& location : {index_first ? index : single, index_first ? single : index}) {
    if (is_there(location.path)) return location;
  }
  return locate_variant(folder, stem);
}

// A file name of the index as a path that stays in the folder. Links may lead elsewhere: download
// caches are made of them.
fs::path shard_path(const fs::path& folder, const std::string& name, const std::string& where) {
  const fs::path relative(name);
  const bool stays = !name.empty() && relative.is_relative() &&
                     name.find('\0') == std::string::npos &&
                     std::find(relative.begin(), relative.end(), "..") == relative.end();
  require(stays, ErrorCode::bad_data, where, "weight_map: the shard path '", printable(name, 200),
          "' leaves the folder");
  return folder / relative;
}

}  // namespace

WeightIndex::WeightIndex(const fs::path& folder, const std::string& stem) {
  std::error_code ignored;
  require(fs::is_directory(folder, ignored), ErrorCode::bad_data, folder.string(),
          "no such folder");
  const std::optional<Location> location = locate(folder, stem);
  if (!location) {
    const std::vector<fs::path> others = unread_weight_files(folder);
    throw Error(ErrorCode::bad_data, (folder / (stem + std::string(kFileEnd))).string(),
                others.empty()
                    ? "no such file"
                    : str("no such file; '", others.front().filename().string(),
                          "' is there, but weights are read from safetensors files only"));
  }
  path_ = location->path;
  variant_ = location->variant;
  open();
}

WeightIndex::WeightIndex(const fs::path& file) : path_(file) { open(); }

void WeightIndex::open() {
  if (path_.extension() == ".json") {
    open_shards();
  } else {
    files_.emplace_back(path_);
    collect();
  }
}

void WeightIndex::open_shards() {
  const fs::path folder = path_.parent_path();
  const std::string where = path_.string();
  const Json index = read_json(path_);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  require(index.is_object() && map != index.end() && map->is_object() && !map->empty(),
          ErrorCode::bad_data, where,
          "expected an object 'weight_map' of tensor names and file names");
  std::map<std::string, fs::path> shards;  // by name, so that the order does not hang on the index
  for (const auto& [tensor, file] : map->items()) {
    require(file.is_string(), ErrorCode::bad_data, where, "weight_map: key '",
            printable(tensor, 200), "': expected a file name, got ", file.type_name());
    const auto& name = file.get_ref<const std::string&>();
    if (!shards.contains(name)) shards[name] = shard_path(folder, name, where);
  }
  std::map<std::string, const SafetensorsFile*> opened;
  files_.reserve(shards.size());
  for (const auto& [name, path] : shards) {
    throw_if_interrupted();
    require(is_there(path), ErrorCode::bad_data, path.string(), "no such file, and ",
            path_.filename().string(), " lists this shard");
    opened[name] = &files_.emplace_back(path);
  }
  collect();
  for (const auto& [tensor, file] : map->items()) {
    const SafetensorsFile& shard = *opened.at(file.get_ref<const std::string&>());
    require(shard.find(tensor) != nullptr, ErrorCode::bad_data, shard.path().string(),
            "does not hold '", printable(tensor, 200), "', which ", path_.filename().string(),
            " says is there");
  }
}

void WeightIndex::collect() {
  size_t count = 0;
  for (const SafetensorsFile& file : files_) count += file.tensors().size();
  entries_.reserve(count);
  by_name_.reserve(count);
  for (const SafetensorsFile& file : files_) {
    for (const StoredTensor& tensor : file.tensors()) {
      const auto [place, fresh] = by_name_.emplace(tensor.name, entries_.size());
      if (!fresh) {
        throw Error(ErrorCode::bad_data, file.path().string(),
                    str("tensor '", printable(tensor.name, 200), "' is in ",
                        entries_[place->second].file->path().filename().string(), " as well"));
      }
      entries_.push_back({&file, &tensor});
    }
  }
}

const WeightIndex::Entry* WeightIndex::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

uint64_t WeightIndex::bytes() const {
  uint64_t sum = 0;
  for (const SafetensorsFile& file : files_) sum += file.data_bytes();
  return sum;
}

bool has_weights(const fs::path& folder, const std::string& stem) {
  return locate(folder, stem).has_value();
}

std::vector<fs::path> unread_weight_files(const fs::path& folder) {
  static const std::set<std::string> kEnds = {".bin", ".pth", ".pt", ".ckpt", ".h5", ".msgpack"};
  std::vector<fs::path> files = files_in(folder);
  std::erase_if(files,
                [](const fs::path& path) { return !kEnds.contains(path.extension().string()); });
  return files;
}

}  // namespace fovea
