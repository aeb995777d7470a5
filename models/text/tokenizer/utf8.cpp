#include "models/text/tokenizer/utf8.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include <utf8proc.h>

#include "core/check.h"

namespace fovea::models {
namespace {

const utf8proc_uint8_t* bytes(std::string_view text) {
  return reinterpret_cast<const utf8proc_uint8_t*>(text.data());
}

constexpr std::array<char32_t, 32> kWindows1252 = {
    0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021, 0x2C6,  0x2030, 0x160,
    0x2039, 0x152,  0x8D,   0x17D,  0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022,
    0x2013, 0x2014, 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E,  0x178};

// Sorts each run of combining marks by class, as canonical ordering does. libutf8proc's own
// ordering takes quadratic time on long runs, and linear time on sorted ones.
void order_marks(std::u32string& text) {
  const auto combining_class = [](char32_t c) {
    return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->combining_class;
  };
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    while (end < text.size() && combining_class(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + begin, text.begin() + end, [&](char32_t a, char32_t b) {
      return combining_class(a) < combining_class(b);
    });
    begin = std::max(end, begin + 1);
  }
}

}  // namespace

size_t invalid_utf8_offset(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = 0;
    const auto size = static_cast<utf8proc_ssize_t>(text.size() - i);
    const utf8proc_ssize_t used = utf8proc_iterate(bytes(text) + i, size, &code_point);
    if (used <= 0) return i;
    i += static_cast<size_t>(used);
  }
  return std::string_view::npos;
}

void require_utf8(std::string_view text, std::string_view where) {
  const size_t offset = invalid_utf8_offset(text);
  require(offset == std::string_view::npos, ErrorCode::bad_data, where, "byte ", offset,
          ": expected valid UTF-8");
}

std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = 0;
    const auto size = static_cast<utf8proc_ssize_t>(text.size() - i);
    const utf8proc_ssize_t used = utf8proc_iterate(bytes(text) + i, size, &code_point);
    FOVEA_ASSERT(used > 0, "text was not checked");
    out.push_back(static_cast<char32_t>(code_point));
    i += static_cast<size_t>(used);
  }
  return out;
}

void append_utf8(std::string& out, char32_t code_point) {
  utf8proc_uint8_t buffer[4];
  const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  out.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(size));
}

std::string encode_utf8(std::u32string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char32_t code_point : text) append_utf8(out, code_point);
  return out;
}

size_t utf8_length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_python_space(char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); }

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  // Joiners, and the circled and squared letters that Unicode lists as Other_Alphabetic.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

char32_t windows_1252(char32_t c1_control) { return kWindows1252.at(c1_control - 0x80); }

std::u32string normalize_unicode(std::u32string text, bool compatibility, bool compose) {
  const auto is_ascii = [](char32_t c) { return c < 0x80; };
  if (std::all_of(text.begin(), text.end(), is_ascii)) return text;
  order_marks(text);
  const std::string utf8 = encode_utf8(text);
  int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (compatibility) options |= UTF8PROC_COMPAT;
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(bytes(utf8), static_cast<utf8proc_ssize_t>(utf8.size()), &mapped,
                   static_cast<utf8proc_option_t>(options));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  require(size >= 0, ErrorCode::resource, "Unicode normalization", utf8proc_errmsg(size));
  return decode_utf8({reinterpret_cast<const char*>(mapped), static_cast<size_t>(size)});
}

}  // namespace fovea::models
