#include "models/text/tokenizer/prompt_clean.h"

#include <algorithm>

#include <utf8proc.h>

#include "core/check.h"
#include "models/text/tokenizer/html_entities.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

std::u32string_view ligature(char32_t c) {
  switch (c) {
    case 0x132:
      return U"IJ";
    case 0x133:
      return U"ij";
    case 0x149:
      return U"\u02BCn";
    case 0x1F1:
      return U"DZ";
    case 0x1F2:
      return U"Dz";
    case 0x1F3:
      return U"dz";
    case 0x1C4:
      return U"D\u017D";
    case 0x1C5:
      return U"D\u017E";
    case 0x1C6:
      return U"d\u017E";
    case 0x1C7:
      return U"LJ";
    case 0x1C8:
      return U"Lj";
    case 0x1C9:
      return U"lj";
    case 0x1CA:
      return U"NJ";
    case 0x1CB:
      return U"Nj";
    case 0x1CC:
      return U"nj";
    case 0xFB00:
      return U"ff";
    case 0xFB01:
      return U"fi";
    case 0xFB02:
      return U"fl";
    case 0xFB03:
      return U"ffi";
    case 0xFB04:
      return U"ffl";
    case 0xFB05:
      return U"\u017Ft";
    case 0xFB06:
      return U"st";
    default:
      return {};
  }
}

// Control characters of the Windows code page, ligatures, full and half width forms, curly quotes.
std::u32string fix_characters(std::u32string_view text) {
  std::u32string out;
  for (char32_t c : text) {
    if (c >= 0x80 && c <= 0x9F) c = windows_1252(c);
    std::u32string parts(ligature(c));
    if (c == 0x3000) parts = U" ";
    if (c >= 0xFF01 && c < 0xFFF0) {
      parts = normalize_unicode({c}, /*compatibility=*/true, /*compose=*/true);
    }
    if (parts.empty()) parts = {c};
    for (char32_t part : parts) {
      if (part >= 0x201C && part <= 0x201F) part = '"';
      if (part == 0x2BC || (part >= 0x2018 && part <= 0x201B)) part = '\'';
      out.push_back(part);
    }
  }
  return out;
}

std::u32string fix_line_breaks(std::u32string_view text) {
  std::u32string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out.push_back(c == '\r' || c == 0x2028 || c == 0x2029 || c == 0x85 ? U'\n' : c);
  }
  return out;
}

// Removes "ESC [ digits-and-semicolons letter".
std::u32string remove_terminal_escapes(std::u32string_view text) {
  const auto is_parameter = [](char32_t c) {
    return c == ';' || utf8proc_category(static_cast<utf8proc_int32_t>(c)) == UTF8PROC_CATEGORY_ND;
  };
  std::u32string out;
  for (size_t i = 0; i < text.size();) {
    if (text[i] == 0x1B && i + 1 < text.size() && text[i + 1] == '[') {
      size_t end = i + 2;
      while (end < text.size() && is_parameter(text[end])) ++end;
      const char32_t last = end < text.size() ? text[end] : 0;
      if ((last >= 'a' && last <= 'z') || (last >= 'A' && last <= 'Z')) {
        i = end + 1;
        continue;
      }
      // Nothing up to `end` can begin another escape.
      out.append(text.substr(i, end - i));
      i = end;
      continue;
    }
    out.push_back(text[i++]);
  }
  return out;
}

bool is_removed_control(char32_t c) {
  return c <= 0x08 || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F ||
         (c >= 0x206A && c <= 0x206F) || c == 0xFEFF || (c >= 0xFFF9 && c <= 0xFFFC);
}

bool is_plain(char32_t c) { return c < 0x7F && c != '\r' && !is_removed_control(c); }

// ftfy's fix_and_explain of one line. There are no lone surrogates in valid UTF-8, so that step is
// not here.
std::u32string fix_line(std::u32string text, bool unescape) {
  while (true) {
    const std::u32string before = text;
    if (unescape) text = unescape_whole_references(text);
    if (!std::all_of(text.begin(), text.end(), is_plain)) {
      text = remove_terminal_escapes(fix_line_breaks(fix_characters(text)));
      std::erase_if(text, is_removed_control);
      text = normalize_unicode(std::move(text), /*compatibility=*/false, /*compose=*/true);
    }
    if (text == before) return text;
  }
}

// ftfy's fix_text: line by line; HTML references are replaced until a line holds a "<".
std::u32string fix_text(std::u32string_view text) {
  std::u32string out;
  bool unescape = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(U'\n', begin), text.size() - 1) + 1;
    const std::u32string_view line = text.substr(begin, end - begin);
    unescape = unescape && line.find(U'<') == std::u32string_view::npos;
    out += fix_line(std::u32string(line), unescape);
    begin = end;
  }
  return out;
}

}  // namespace

std::string prompt_clean(std::string_view prompt, std::string_view where) {
  require(prompt.size() <= kMaxPromptBytes, ErrorCode::resource, where, "has ", prompt.size(),
          " bytes, at most ", kMaxPromptBytes, " are read");
  require_utf8(prompt, where);
  const std::u32string text = unescape_html(unescape_html(fix_text(decode_utf8(prompt))));
  std::u32string out;
  bool space = false;
  for (char32_t c : text) {
    if (is_python_space(c)) {
      space = !out.empty();
      continue;
    }
    if (space) out.push_back(' ');
    space = false;
    out.push_back(c);
  }
  return encode_utf8(out);
}

}  // namespace fovea::models
