#include "models/text/tokenizer/charsmap.h"

#include <algorithm>

#include <utf8proc.h>

#include "core/check.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

// Longer clusters are never replaced as a whole.
constexpr size_t kMaxClusterBytes = 5;

uint32_t read_u32(std::string_view bytes, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[offset + i])) << (8 * i);
  }
  return value;
}

// Fields of a unit of a darts double array.
bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000FF; }
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

}  // namespace

Charsmap::Charsmap(std::string_view bytes, std::string where) : where_(std::move(where)) {
  require(bytes.size() >= 4, ErrorCode::bad_data, where_, "precompiled_charsmap has ", bytes.size(),
          " bytes, expected at least 4");
  const size_t trie_bytes = read_u32(bytes, 0);
  require(trie_bytes <= bytes.size() - 4 && trie_bytes % 4 == 0 && trie_bytes > 0,
          ErrorCode::bad_data, where_, "precompiled_charsmap: a trie of ", trie_bytes,
          " bytes does not fit into ", bytes.size());
  units_.reserve(trie_bytes / 4);
  for (size_t i = 0; i < trie_bytes; i += 4) units_.push_back(read_u32(bytes, 4 + i));
  replacements_ = bytes.substr(4 + trie_bytes);
  const size_t offset = invalid_utf8_offset(replacements_);
  require(offset == std::string::npos, ErrorCode::bad_data, where_,
          "precompiled_charsmap: replacement byte ", offset, ": expected valid UTF-8");
}

bool Charsmap::replace(std::string_view part, std::string& out) const {
  size_t node = offset_of(units_[0]);
  for (char byte : part) {
    const auto label = static_cast<unsigned char>(byte);
    if (label == 0) return false;
    node ^= label;
    require(node < units_.size(), ErrorCode::bad_data, where_, "precompiled_charsmap: unit ", node,
            " lies outside the trie");
    const uint32_t unit = units_[node];
    if (label_of(unit) != label) return false;
    node ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    require(node < units_.size() && value_of(units_[node]) <= replacements_.size(),
            ErrorCode::bad_data, where_, "precompiled_charsmap: leaf ", node,
            " lies outside the map");
    const size_t begin = value_of(units_[node]);
    const size_t end = std::min(replacements_.find('\0', begin), replacements_.size());
    require(begin == end || (replacements_[begin] & 0xC0) != 0x80, ErrorCode::bad_data, where_,
            "precompiled_charsmap: leaf ", node, " points into a character");
    out.append(replacements_, begin, end - begin);
    return true;
  }
  return false;
}

std::string Charsmap::normalize(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  const std::u32string code_points = decode_utf8(text);
  size_t byte = 0;
  for (size_t i = 0; i < code_points.size();) {
    // One extended grapheme cluster: code points [i, end), bytes [byte, byte_end).
    utf8proc_int32_t state = 0;
    size_t end = i;
    size_t byte_end = byte;
    do {
      byte_end += utf8_length(text[byte_end]);
      ++end;
    } while (end < code_points.size() &&
             !utf8proc_grapheme_break_stateful(static_cast<utf8proc_int32_t>(code_points[end - 1]),
                                               static_cast<utf8proc_int32_t>(code_points[end]),
                                               &state));
    const std::string_view cluster = text.substr(byte, byte_end - byte);
    if (cluster.size() > kMaxClusterBytes || !replace(cluster, out)) {
      for (size_t at = 0; at < cluster.size(); at += utf8_length(cluster[at])) {
        const std::string_view character = cluster.substr(at, utf8_length(cluster[at]));
        if (!replace(character, out)) out.append(character);
      }
    }
    i = end;
    byte = byte_end;
  }
  return out;
}

std::string decode_base64(std::string_view text, const std::string& where) {
  for (int i = 0; i < 2 && text.ends_with('='); ++i) text.remove_suffix(1);
  std::string out;
  out.reserve(text.size() / 4 * 3 + 2);
  uint32_t buffer = 0;
  int bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const int value = base64_value(text[i]);
    require(value >= 0, ErrorCode::bad_data, where, "byte ", i,
            " of base64 text: expected A-Z, a-z, ", "0-9, + or /, got '", text[i], "'");
    buffer = buffer << 6 | static_cast<uint32_t>(value);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out.push_back(static_cast<char>(buffer >> bits & 0xFF));
    }
  }
  require(bits < 6, ErrorCode::bad_data, where, "base64 text of ", text.size(),
          " characters is cut off");
  return out;
}

}  // namespace fovea::models
