#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace fovea::models {

/// Byte offset of the first byte that is not part of valid UTF-8 (surrogates and overlong forms are
/// not valid), or npos.
size_t invalid_utf8_offset(std::string_view text);

/// Throws Error bad_data naming the byte offset unless `text` is valid UTF-8.
void require_utf8(std::string_view text, std::string_view where);

/// Code points of valid UTF-8.
std::u32string decode_utf8(std::string_view text);
std::string encode_utf8(std::u32string_view text);
/// Appends one code point as UTF-8.
void append_utf8(std::string& out, char32_t code_point);
/// Bytes of the character that begins with `lead`, in valid UTF-8.
size_t utf8_length(char lead);

/// Unicode's White_Space property, which Rust's char::is_whitespace and regex \s use.
bool is_white_space(char32_t code_point);
/// What Python's str.isspace, str.strip and \s take as white space: White_Space and U+001C to
/// U+001F.
bool is_python_space(char32_t code_point);
/// Unicode's \w: letters, marks, decimal digits, connectors, joiners.
bool is_word_character(char32_t code_point);

/// What Windows-1252 has at 0x80 to 0x9F, for a C1 control character; the five codes that it does
/// not assign stay.
char32_t windows_1252(char32_t c1_control);

/// One of Unicode's normalization forms; `compatibility` false, `compose` true is NFC.
std::u32string normalize_unicode(std::u32string text, bool compatibility, bool compose);

}  // namespace fovea::models
