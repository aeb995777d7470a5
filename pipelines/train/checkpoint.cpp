#include "pipelines/train/checkpoint.h"

#include <charconv>
#include <cstring>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/safetensors.h"

namespace fovea::pipelines {
namespace {

// FNV-1a over 8-byte words: finds damage, keeps up with the disk.
// source  Fowler, Noll, Vo: draft-eastlake-fnv
class Checksum {
 public:
  void add(const std::string& text) { add(text.data(), text.size()); }
  void add(const at::Tensor& tensor) {
    add(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  std::string text() const { return std::to_string(value_); }

 private:
  void add(const char* bytes, size_t size) {
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, bytes + i, std::min(sizeof word, size - i));
      value_ = (value_ ^ word) * 0x100000001B3u;
    }
    value_ = (value_ ^ size) * 0x100000001B3u;
  }

  uint64_t value_ = 0xCBF29CE484222325u;
};

std::string checksum(const TensorMap& tensors, const std::string& text) {
  Checksum sum;
  sum.add(text);
  for (const auto& [name, tensor] : tensors) {
    sum.add(name);
    sum.add(tensor);
  }
  return sum.text();
}

}  // namespace

void Checkpoint::save(const TrainingState& state) const {
  TensorMap tensors;
  for (const auto& [name, tensor] : state.tensors) {
    tensors.emplace(name, tensor.detach().cpu().contiguous());
  }
  const std::string step = std::to_string(state.step), skipped = std::to_string(state.skipped);
  save_tensors(path_, tensors, /*overwrite=*/true,
               {{"settings", settings_},
                {"step", step},
                {"skipped", skipped},
                {"checksum", checksum(tensors, settings_ + step + skipped)}});
}

std::optional<TrainingState> Checkpoint::load() const {
  std::error_code ignored;
  if (!fs::exists(path_, ignored)) return std::nullopt;
  const std::map<std::string, std::string> metadata = SafetensorsFile(path_).metadata();
  const auto text = [&](const char* key) {
    const auto found = metadata.find(key);
    require(found != metadata.end(), ErrorCode::bad_data, path_.string(), "metadata '", key,
            "' is missing: not a checkpoint");
    return found->second;
  };
  const auto number = [&](const char* key) {
    const std::string digits = text(key);
    int64_t value = -1;
    const char* end = digits.data() + digits.size();
    const auto [rest, error] = std::from_chars(digits.data(), end, value);
    require(error == std::errc() && rest == end && value >= 0, ErrorCode::bad_data, path_.string(),
            "metadata '", key, "': expected a number, got '", digits, "'");
    return value;
  };
  require(text("settings") == settings_, ErrorCode::conflict, path_.string(),
          "was made with another configuration; use that one, or --overwrite to start anew");
  TrainingState state{.step = number("step"), .skipped = number("skipped")};
  state.tensors = load_tensors(path_);
  require(checksum(state.tensors, settings_ + text("step") + text("skipped")) == text("checksum"),
          ErrorCode::bad_data, path_.string(), "is damaged: its checksum does not fit");
  return state;
}

void Checkpoint::remove() const {
  std::error_code error;
  fs::remove(path_, error);
  if (error) throw_errno(error.value(), path_, "remove");
}

}  // namespace fovea::pipelines
