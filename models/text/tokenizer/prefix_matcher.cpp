#include "models/text/tokenizer/prefix_matcher.h"

#include <algorithm>

namespace fovea::models {

PrefixMatcher::PrefixMatcher(std::vector<std::pair<std::string, int32_t>> entries)
    : entries_(std::move(entries)) {
  std::stable_sort(entries_.begin(), entries_.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  size_t kept = 0;
  for (size_t i = 0; i < entries_.size(); ++i) {
    const bool repeated = i + 1 < entries_.size() && entries_[i + 1].first == entries_[i].first;
    if (entries_[i].first.empty() || repeated) continue;
    if (kept != i) entries_[kept] = std::move(entries_[i]);
    ++kept;
  }
  entries_.resize(kept);
  for (const auto& entry : entries_) ++first_byte_[static_cast<unsigned char>(entry.first[0]) + 1];
  for (size_t byte = 1; byte < first_byte_.size(); ++byte)
    first_byte_[byte] += first_byte_[byte - 1];
}

int32_t PrefixMatcher::find(std::string_view text) const {
  const auto found =
      std::lower_bound(entries_.begin(), entries_.end(), text,
                       [](const auto& entry, std::string_view key) { return entry.first < key; });
  return found != entries_.end() && found->first == text ? found->second : -1;
}

void PrefixMatcher::narrow(size_t depth, char byte, size_t& low, size_t& high) const {
  const auto key = static_cast<unsigned char>(byte);
  const auto begin = entries_.begin();
  const auto at = [depth](const auto& entry) {
    return static_cast<unsigned char>(entry.first[depth]);
  };
  const auto from = std::partition_point(begin + low, begin + high,
                                         [&](const auto& entry) { return at(entry) < key; });
  const auto to =
      std::partition_point(from, begin + high, [&](const auto& entry) { return at(entry) == key; });
  low = static_cast<size_t>(from - begin);
  high = static_cast<size_t>(to - begin);
}

}  // namespace fovea::models
