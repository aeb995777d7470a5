#include "models/text/tokenizer/added_tokens.h"

#include <algorithm>

#include "core/check.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

// Bounds the work per character of input.
constexpr size_t kMaxTokenBytes = 1024;

char32_t code_point_at(std::string_view text, size_t byte) {
  return decode_utf8(text.substr(byte, utf8_length(text[byte])))[0];
}

// Where the character that ends at `end` begins.
size_t previous_character(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80);
  return end;
}

bool touches_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_character(code_point_at(text, previous_character(text, begin))))
    return true;
  return end < text.size() && is_word_character(code_point_at(text, end));
}

}  // namespace

int32_t AddedTokens::id(const std::string& content, const Unigram& model) const {
  const auto found = ids_.find(content);
  return found != ids_.end() ? found->second : model.id(content);
}

int64_t AddedTokens::end_id() const {
  return by_id_.empty() ? 0 : by_id_.rbegin()->first + int64_t{1};
}

void AddedTokens::add(const AddedToken& token, const Unigram& model) {
  if (token.content.empty()) return;
  if (token.special && special_contents_.insert(token.content).second) special_.push_back(token);
  const int32_t known = id(token.content, model);
  const auto present = by_id_.find(known);
  if (present != by_id_.end() && present->second == token) return;
  const int32_t new_id =
      known >= 0 ? known : static_cast<int32_t>(std::max(end_id(), model.size()));
  ids_[token.content] = new_id;
  by_id_[new_id] = token;
  if (!special_contents_.contains(token.content)) plain_.push_back(token);
}

void AddedTokens::finish(const std::function<std::string(std::string_view)>& normalize,
                         bool split_special, const std::string& where) {
  split_special_ = split_special;
  std::vector<std::pair<std::string, int32_t>> raw;
  std::vector<std::pair<std::string, int32_t>> normalized;
  for (const auto* group : {&special_, &plain_}) {
    for (const AddedToken& token : *group) {
      require(token.content.size() <= kMaxTokenBytes, ErrorCode::resource, where, "added token '",
              printable(token.content, 40), "' has ", token.content.size(), " bytes, at most ",
              kMaxTokenBytes, " are read");
      const int32_t id = ids_.at(token.content);
      if (!token.normalized) {
        raw.emplace_back(token.content, id);
        continue;
      }
      normalized.emplace_back(normalize(token.content), id);
      require(!normalized.back().first.empty(), ErrorCode::bad_data, where, "added token '",
              printable(token.content, 40), "' is empty after normalization");
    }
  }
  // Of tokens that normalize alike the first one counts; a matcher keeps the last.
  std::reverse(normalized.begin(), normalized.end());
  raw_ = PrefixMatcher(std::move(raw));
  normalized_ = PrefixMatcher(std::move(normalized));
}

std::vector<TextPiece> AddedTokens::split(std::string_view text,
                                          const PrefixMatcher& matcher) const {
  std::vector<TextPiece> pieces;
  size_t taken = 0;  // end of the last piece
  for (size_t at = 0; at < text.size();) {
    size_t length = 0;
    int32_t id = -1;
    matcher.each_prefix(text.substr(at), [&](size_t prefix, int32_t value) {
      length = prefix;
      id = value;
    });
    if (length == 0) {
      at += utf8_length(text[at]);
      continue;
    }
    size_t begin = at;
    size_t end = at + length;
    at = end;
    const AddedToken& token = by_id_.at(id);
    if (split_special_ && special_contents_.contains(token.content)) continue;
    if (token.single_word && touches_word(text, begin, end)) continue;
    while (token.lstrip && begin > taken) {
      const size_t before = previous_character(text, begin);
      if (!is_white_space(code_point_at(text, before))) break;
      begin = before;
    }
    while (token.rstrip && end < text.size() && is_white_space(code_point_at(text, end))) {
      end += utf8_length(text[end]);
    }
    if (taken < begin) pieces.push_back({text.substr(taken, begin - taken), -1});
    pieces.push_back({text.substr(begin, end - begin), id});
    taken = end;
  }
  if (taken < text.size()) pieces.push_back({text.substr(taken), -1});
  return pieces;
}

}  // namespace fovea::models
