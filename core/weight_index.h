#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/safetensors.h"

namespace fovea {

/// Which safetensors files hold a model's weights, and which tensor is where; reads headers only.
///
/// In FOLDER, for the file name stem "diffusion_pytorch_model" or "model": STEM.safetensors or the
/// shards of STEM.safetensors.index.json (with both, diffusers takes the index for its stem and
/// transformers the single file; so does this). Without either, the files of the only variant
/// ("fp16", say) that is there.
class WeightIndex {
 public:
  struct Entry {
    const SafetensorsFile* file;
    const StoredTensor* tensor;
  };

  /// throws  Error bad_data: no weights (naming a .bin, .pth or .pt file that is there instead),
  ///         missing or malformed index or shard, a shard path that leaves the folder, a name that
  ///         the index promises and its shard does not hold, a name in two shards
  WeightIndex(const fs::path& folder, const std::string& stem);
  /// One safetensors file, or the shards that a .json index file lists.
  explicit WeightIndex(const fs::path& file);

  /// The tensor `name`, or nullptr.
  const Entry* find(const std::string& name) const;
  /// All tensors, file by file, in the order of their bytes.
  const std::vector<Entry>& entries() const { return entries_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  /// The index or the single file: what errors name.
  const fs::path& path() const { return path_; }
  /// The variant taken because there was no plain file; else empty.
  const std::string& variant() const { return variant_; }
  uint64_t bytes() const;  ///< of all tensor data

 private:
  void open();
  void open_shards();
  void collect();

  fs::path path_;
  std::string variant_;
  std::vector<SafetensorsFile> files_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

/// True when FOLDER holds weights that `WeightIndex(folder, stem)` would open.
///
/// throws  Error bad_data when several variants and no plain file are there
bool has_weights(const fs::path& folder, const std::string& stem);
/// Files in `folder` that hold weights in a format that is not read (.bin, .pth, .pt, .ckpt, .h5,
/// .msgpack), sorted by name.
std::vector<fs::path> unread_weight_files(const fs::path& folder);

}  // namespace fovea
