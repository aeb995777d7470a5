#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fovea::models {

/// A fixed set of strings with values that answers which of them begin a text: a trie, kept as a
/// sorted array in which each node is a range.
class PrefixMatcher {
 public:
  PrefixMatcher() = default;
  /// entries  texts with their values; of equal texts the last one counts, empty ones are left out
  explicit PrefixMatcher(std::vector<std::pair<std::string, int32_t>> entries);

  /// Calls visit(length, value) for every entry that begins `text`, shortest first.
  /// cost  O(log entries) per byte of the longest common prefix
  template <typename Visit>
  void each_prefix(std::string_view text, Visit visit) const {
    if (text.empty()) return;
    const auto first = static_cast<unsigned char>(text[0]);
    size_t low = first_byte_[first];
    size_t high = first_byte_[first + 1];
    for (size_t depth = 1; low < high; ++depth) {
      if (entries_[low].first.size() == depth) visit(depth, entries_[low++].second);
      if (depth == text.size()) return;
      narrow(depth, text[depth], low, high);
    }
  }
  /// Value of exactly `text`, or -1.
  int32_t find(std::string_view text) const;

 private:
  // Keeps of the entries [low, high), which share `depth` bytes, those with `byte` after them.
  void narrow(size_t depth, char byte, size_t& low, size_t& high) const;

  std::vector<std::pair<std::string, int32_t>> entries_;
  std::array<size_t, 257> first_byte_{};  // entries_ that begin with byte b: [b], [b + 1]
};

}  // namespace fovea::models
