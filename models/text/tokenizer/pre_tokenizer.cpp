#include "models/text/tokenizer/pre_tokenizer.h"

#include "core/check.h"
#include "models/text/tokenizer/json_fields.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {

PreTokenizer PreTokenizer::t5() {
  PreTokenizer out;
  out.steps_ = {Step{.white_space = true}, Step{}};
  return out;
}

PreTokenizer PreTokenizer::read(const Json& json, const std::string& where) {
  PreTokenizer out;
  if (!json.is_null()) out.read_step(json, where);
  return out;
}

void PreTokenizer::read_step(const Json& json, const std::string& where) {
  const std::string& type = json_text(json, "type", where);
  if (type == "Sequence") {
    for (const Json& step : json_member(json, "pretokenizers", where)) read_step(step, where);
    return;
  }
  if (type == "WhitespaceSplit") {
    steps_.push_back(Step{.white_space = true});
    return;
  }
  require(type == "Metaspace", ErrorCode::bad_data, where, "key 'pre_tokenizer': type '",
          printable(type, 80), "' is not supported");
  Step step;
  step.marker = json_text(json, "replacement", where);
  require(!step.marker.empty() && step.marker.size() == utf8_length(step.marker[0]),
          ErrorCode::bad_data, where, "key 'replacement': expected one character");
  // Files of older versions say add_prefix_space, newer ones prepend_scheme.
  step.prepend = json_flag(json, "add_prefix_space", true, where);
  if (json.contains("prepend_scheme")) {
    const std::string& scheme = json_text(json, "prepend_scheme", where);
    require(scheme == "always" || scheme == "never", ErrorCode::bad_data, where,
            "key 'prepend_scheme': '", printable(scheme, 80), "' is not supported");
    step.prepend = scheme == "always";
  }
  step.cut = json_flag(json, "split", true, where);
  steps_.push_back(step);
}

std::vector<std::string> PreTokenizer::split(std::string_view text) const {
  std::vector<std::string> words;
  if (!text.empty()) words.emplace_back(text);
  for (const Step& step : steps_) {
    std::vector<std::string> next;
    for (std::string& word : words) {
      if (step.white_space) {
        split_white_space(word, next);
      } else {
        split_markers(step, std::move(word), next);
      }
    }
    words = std::move(next);
  }
  return words;
}

void PreTokenizer::split_white_space(const std::string& text, std::vector<std::string>& out) {
  size_t byte = 0;
  size_t begin = 0;
  for (char32_t code_point : decode_utf8(text)) {
    const size_t end = byte + utf8_length(text[byte]);
    if (is_white_space(code_point)) {
      if (byte > begin) out.push_back(text.substr(begin, byte - begin));
      begin = end;
    }
    byte = end;
  }
  if (byte > begin) out.push_back(text.substr(begin));
}

void PreTokenizer::split_markers(const Step& step, std::string text,
                                 std::vector<std::string>& out) {
  std::string marked;
  for (char byte : text) {
    if (byte == ' ') {
      marked += step.marker;
    } else {
      marked += byte;
    }
  }
  if (step.prepend && !marked.starts_with(step.marker)) marked.insert(0, step.marker);
  size_t begin = 0;
  while (step.cut) {
    const size_t next = marked.find(step.marker, begin + 1);
    if (next == std::string::npos) break;
    out.push_back(marked.substr(begin, next - begin));
    begin = next;
  }
  out.push_back(marked.substr(begin));
}

}  // namespace fovea::models
