#include "models/text/tokenizer/tokenizer.h"

#include <algorithm>

#include "core/check.h"
#include "models/text/tokenizer/tokenizer_folder.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {

Tokenizer Tokenizer::open(const std::filesystem::path& folder, const std::string& class_name) {
  return Tokenizer(read_tokenizer_folder(folder, class_name));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, int64_t max_length) const {
  require_utf8(text, "text");
  const auto specials = static_cast<int64_t>(parts_.prefix.size() + parts_.suffix.size());
  require(max_length >= specials, ErrorCode::usage, "max_length", "expected at least ", specials,
          ", got ", max_length);
  std::vector<int32_t> ids;
  for (const TextPiece& piece : parts_.added.split_raw(text)) {
    if (piece.id >= 0) {
      ids.push_back(piece.id);
      continue;
    }
    const std::string normalized = parts_.normalizer.normalize(piece.text);
    for (const TextPiece& inner : parts_.added.split_normalized(normalized)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        encode_words(inner.text, ids);
      }
    }
  }
  const auto room = static_cast<size_t>(max_length - specials);
  if (ids.size() > room) {
    const auto excess = static_cast<std::ptrdiff_t>(ids.size() - room);
    const auto from = parts_.truncate_left ? ids.begin() : ids.end() - excess;
    ids.erase(from, from + excess);
  }
  ids.insert(ids.begin(), parts_.prefix.begin(), parts_.prefix.end());
  ids.insert(ids.end(), parts_.suffix.begin(), parts_.suffix.end());
  return ids;
}

void Tokenizer::encode_words(std::string_view normalized, std::vector<int32_t>& ids) const {
  for (const std::string& word : parts_.pre_tokenizer.split(normalized)) {
    parts_.model.encode(word, ids);
  }
}

int64_t Tokenizer::vocab_size() const {
  return std::max(parts_.model.size(), parts_.added.end_id());
}

std::optional<int32_t> Tokenizer::token_id(const std::string& token) const {
  const int32_t id = parts_.added.id(token, parts_.model);
  return id >= 0 ? std::optional<int32_t>(id) : std::nullopt;
}

}  // namespace fovea::models
