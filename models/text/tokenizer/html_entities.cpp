#include "models/text/tokenizer/html_entities.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

struct Entity {
  std::string_view name;
  std::array<char32_t, 3> text;  // zeros behind
};

#include "models/text/tokenizer/html_capitals.inc"
#include "models/text/tokenizer/html_entities.inc"

bool is_digit(char32_t c) { return c >= '0' && c <= '9'; }
bool is_letter(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

int hex_value(char32_t c) {
  if (is_digit(c)) return static_cast<int>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<int>(c - 'a') + 10;
  if (c >= 'A' && c <= 'F') return static_cast<int>(c - 'A') + 10;
  return -1;
}

std::optional<std::u32string> find_entity(std::span<const Entity> entities, std::string_view name) {
  const auto found = std::lower_bound(
      entities.begin(), entities.end(), name,
      [](const Entity& entity, std::string_view key) { return entity.name < key; });
  if (found == entities.end() || found->name != name) return std::nullopt;
  std::u32string out;
  for (char32_t c : found->text) {
    if (c != 0) out.push_back(c);
  }
  return out;
}

std::u32string numbered_character(uint32_t number) {
  if (number == 0) return U"\uFFFD";
  if (number >= 0x80 && number <= 0x9F) return {windows_1252(number)};
  if ((number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF) return U"\uFFFD";
  const bool control =
      number < 0x20 && number != 0x09 && number != 0x0A && number != 0x0C && number != 0x0D;
  const bool noncharacter = (number >= 0xFDD0 && number <= 0xFDEF) || (number & 0xFFFE) == 0xFFFE;
  if (control || number == 0x7F || noncharacter) return {};
  return {static_cast<char32_t>(number)};
}

// A number at the start of `text`, which follows "&#".
struct NumericReference {
  size_t length = 0;  // characters, without a semicolon; 0: there is none
  uint32_t number = 0;
};

NumericReference parse_number(std::u32string_view text) {
  const bool hex = !text.empty() && (text[0] == 'x' || text[0] == 'X');
  const size_t begin = hex ? 1 : 0;
  uint64_t number = 0;
  size_t at = begin;
  for (; at < text.size(); ++at) {
    const int digit = hex || is_digit(text[at]) ? hex_value(text[at]) : -1;
    if (digit < 0) break;
    number = std::min<uint64_t>(number * (hex ? 16 : 10) + static_cast<uint64_t>(digit), 0x110000);
  }
  if (at == begin) return {};
  return {at, static_cast<uint32_t>(number)};
}

bool ends_name(char32_t c) {
  return c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' ||
         c == ';';
}

// Text that the name after "&" stands for, with the rest of the name behind it.
std::u32string replace_name(std::u32string_view name) {
  std::string ascii;
  for (char32_t c : name) {
    if (c >= 0x80) break;
    ascii.push_back(static_cast<char>(c));
  }
  for (size_t length = ascii.size(); length >= 2; --length) {
    if (auto text = find_entity(kNames, std::string_view(ascii).substr(0, length))) {
      return *text + std::u32string(name.substr(length));
    }
  }
  return U"&" + std::u32string(name);
}

// A reference with its semicolon at the start of a text that follows an "&".
struct WholeReference {
  size_t length = 0;                   // characters, with the semicolon
  std::optional<std::u32string> text;  // what it stands for, where it is known
};

WholeReference parse_whole(std::u32string_view text) {
  constexpr size_t kMaxName = 24;
  const bool numeric = !text.empty() && text[0] == '#';
  const size_t begin = numeric ? 1 : 0;
  size_t end = begin;
  std::string name;
  while (end < text.size() && end - begin < kMaxName &&
         (is_digit(text[end]) || is_letter(text[end]))) {
    name.push_back(static_cast<char>(text[end++]));
  }
  if (end == begin || end >= text.size() || text[end] != ';') return {};
  WholeReference out{end + 1, std::nullopt};
  if (numeric) {
    const NumericReference reference = parse_number(text.substr(1));
    // ftfy leaves a reference to a semicolon alone.
    if (reference.length + 1 == end && reference.number != ';') {
      out.text = numbered_character(reference.number);
    }
    return out;
  }
  name.push_back(';');
  out.text = find_entity(kNames, name);
  if (!out.text) out.text = find_entity(kCapitalNames, name);
  return out;
}

// Adds what the reference at the start of `text`, which begins with "&", stands for to `out`.
// Returns the length of the reference, 0 when there is none.
size_t append_reference(std::u32string_view text, std::u32string& out) {
  constexpr size_t kMaxName = 32;
  size_t length = 1;
  if (text.size() > 1 && text[1] == '#') {
    const NumericReference reference = parse_number(text.substr(2));
    if (reference.length == 0) return 0;
    out += numbered_character(reference.number);
    length = 2 + reference.length;
    return length < text.size() && text[length] == ';' ? length + 1 : length;
  }
  while (length < text.size() && length <= kMaxName && !ends_name(text[length])) ++length;
  if (length == 1) return 0;
  if (length < text.size() && text[length] == ';') ++length;
  out += replace_name(text.substr(1, length - 1));
  return length;
}

}  // namespace

std::u32string unescape_html(std::u32string_view text) {
  std::u32string out;
  for (size_t at = 0; at < text.size();) {
    const size_t length = text[at] == '&' ? append_reference(text.substr(at), out) : 0;
    if (length == 0) out.push_back(text[at]);
    at += std::max<size_t>(length, 1);
  }
  return out;
}

std::u32string unescape_whole_references(std::u32string_view text) {
  std::u32string out;
  for (size_t at = 0; at < text.size();) {
    if (text[at] != '&') {
      out.push_back(text[at++]);
      continue;
    }
    ++at;
    std::u32string meaning = U"&";
    while (meaning == U"&") {
      WholeReference reference = parse_whole(text.substr(at));
      if (!reference.text) break;
      at += reference.length;
      meaning = std::move(*reference.text);
    }
    out += meaning;
  }
  return out;
}

}  // namespace fovea::models
