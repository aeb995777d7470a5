#include "models/text/tokenizer/normalizer.h"

#include <algorithm>

#include "core/check.h"
#include "models/text/tokenizer/json_fields.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {

Normalizer Normalizer::read(const Json& json, const std::string& where) {
  Normalizer out;
  if (!json.is_null()) out.read_step(json, where);
  return out;
}

void Normalizer::read_step(const Json& json, const std::string& where) {
  const std::string& type = json_text(json, "type", where);
  if (type == "Sequence") {
    for (const Json& step : json_member(json, "normalizers", where)) read_step(step, where);
  } else if (type == "Precompiled") {
    steps_.emplace_back(
        Charsmap(decode_base64(json_text(json, "precompiled_charsmap", where), where), where));
  } else if (type == "Strip") {
    steps_.emplace_back(Strip{json_flag(json, "strip_left", true, where),
                              json_flag(json, "strip_right", true, where)});
  } else if (type == "Replace") {
    read_replace(json, where);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    steps_.emplace_back(UnicodeForm{type[2] == 'K', type.back() == 'C'});
  } else {
    throw Error(ErrorCode::bad_data, where,
                str("key 'normalizer': type '", type, "' is not supported"));
  }
}

void Normalizer::read_replace(const Json& json, const std::string& where) {
  const Json& pattern = json_member(json, "pattern", where);
  const std::string& content = json_text(json, "content", where);
  if (pattern.is_object() && pattern.contains("String")) {
    const std::string& from = json_text(pattern, "String", where);
    require(!from.empty(), ErrorCode::bad_data, where,
            "key 'normalizer': Replace of an empty text");
    steps_.emplace_back(Replace{from, content});
    return;
  }
  const std::string& regex = json_text(pattern, "Regex", where);
  require(regex == " {2,}", ErrorCode::bad_data, where,
          "key 'normalizer': Replace supports the pattern ", "' {2,}' only, got '",
          printable(regex, 80), "'");
  steps_.emplace_back(ReplaceSpaces{content});
}

std::string Normalizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) {
    out = std::visit([&](const auto& rule) { return apply(rule, std::move(out)); }, step);
  }
  return out;
}

std::string Normalizer::apply(const Charsmap& charsmap, std::string text) {
  return charsmap.normalize(text);
}

std::string Normalizer::apply(const Strip& strip, std::string text) {
  const std::u32string code_points = decode_utf8(text);
  size_t begin = 0;
  size_t end = code_points.size();
  while (strip.left && begin < end && is_white_space(code_points[begin])) ++begin;
  while (strip.right && end > begin && is_white_space(code_points[end - 1])) --end;
  return encode_utf8(std::u32string_view(code_points).substr(begin, end - begin));
}

std::string Normalizer::apply(const Replace& replace, std::string text) {
  std::string out;
  size_t begin = 0;
  for (size_t at; (at = text.find(replace.from, begin)) != std::string::npos;) {
    out.append(text, begin, at - begin).append(replace.to);
    begin = at + replace.from.size();
  }
  return out.append(text, begin);
}

std::string Normalizer::apply(const ReplaceSpaces& replace, std::string text) {
  std::string out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_not_of(' ', begin), text.size());
    if (end - begin >= 2) {
      out.append(replace.to);
    } else {
      out.append(text, begin, end - begin);
    }
    const size_t next = std::min(text.find(' ', end), text.size());
    out.append(text, end, next - end);
    begin = next;
  }
  return out;
}

std::string Normalizer::apply(const UnicodeForm& form, std::string text) {
  return encode_utf8(normalize_unicode(decode_utf8(text), form.compatibility, form.compose));
}

}  // namespace fovea::models
