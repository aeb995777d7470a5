#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::models {

/// Sentencepiece's compiled normalization rules (`precompiled_charsmap`): a little-endian u32 size,
/// a double-array trie (darts) of that many bytes, and NUL-terminated replacement texts.
class Charsmap {
 public:
  /// bytes   the map itself; `where` names its file in errors
  /// throws  Error bad_data for a size that lies or replacements that are not UTF-8
  Charsmap(std::string_view bytes, std::string where);

  /// The normalized text.
  ///
  /// Each extended grapheme cluster of fewer than 6 bytes that begins with a rule's left side
  /// becomes the right side as a whole; else its characters are replaced one by one.
  ///
  /// text    valid UTF-8
  /// throws  Error bad_data when the trie points outside the map
  /// source  the tokenizers library's Precompiled normalizer
  std::string normalize(std::string_view text) const;

 private:
  bool replace(std::string_view part, std::string& out) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
  std::string where_;
};

/// Bytes of base64 text with padding. throws Error bad_data naming `where` for anything else
std::string decode_base64(std::string_view text, const std::string& where);

}  // namespace fovea::models
