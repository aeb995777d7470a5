#include "apps/fovea/number_list.h"

#include <charconv>

#include "core/check.h"

namespace fovea::apps {
namespace {

constexpr int64_t kMax = int64_t{1} << 40;
constexpr size_t kMaxCount = 1000;

int64_t number_of(const std::string& text, const std::string& where) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  require(whole && value >= 1 && value <= kMax, ErrorCode::usage, where,
          "expected a whole number from 1 on, got '", text, "'");
  return value;
}

void append_range(const std::string& part, const std::string& where, std::vector<int64_t>& out) {
  const size_t dots = part.find("..");
  const size_t sign = part.find_first_of("*+", dots);
  require(sign != std::string::npos, ErrorCode::usage, where,
          "expected FIRST..LAST*FACTOR or FIRST..LAST+STEP, got '", part, "'");
  const int64_t first = number_of(part.substr(0, dots), where);
  const int64_t last = number_of(part.substr(dots + 2, sign - dots - 2), where);
  const int64_t step = number_of(part.substr(sign + 1), where);
  require(part[sign] == '+' || step >= 2, ErrorCode::usage, where, "a factor of 1 in '", part, "'");
  for (int64_t value = first; value <= last && out.size() <= kMaxCount;) {
    out.push_back(value);
    // In 128 bits neither can overflow.
    const __int128 next = part[sign] == '*' ? static_cast<__int128>(value) * step
                                            : static_cast<__int128>(value) + step;
    if (next > last) break;
    value = static_cast<int64_t>(next);
  }
}

}  // namespace

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> out(1);
  for (const char c : text) {
    if (c == separator) {
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  return out;
}

std::vector<int64_t> parse_numbers(const std::string& text, const std::string& where) {
  std::vector<int64_t> out;
  for (const std::string& part : split(text, ',')) {
    if (part.find("..") == std::string::npos) {
      out.push_back(number_of(part, where));
    } else {
      append_range(part, where, out);
    }
    require(out.size() <= kMaxCount, ErrorCode::usage, where, "more than ", kMaxCount, " numbers");
  }
  require(!out.empty(), ErrorCode::usage, where, "'", text, "' is empty");
  return out;
}

std::array<int64_t, 3> parse_grid(const std::string& text, const std::string& where) {
  const std::vector<std::string> sides = split(text, 'x');
  require(sides.size() == 3, ErrorCode::usage, where, "expected FRAMESxHEIGHTxWIDTH, got '", text,
          "'");
  const std::array<int64_t, 3> grid = {number_of(sides[0], where), number_of(sides[1], where),
                                       number_of(sides[2], where)};
  const __int128 tokens = static_cast<__int128>(grid[0]) * grid[1];
  require(tokens <= kMax && tokens * grid[2] <= kMax, ErrorCode::usage, where, "'", text,
          "' has too many tokens");
  return grid;
}

std::vector<std::string> parse_words(const std::string& text, const std::string& where) {
  std::vector<std::string> out = split(text, ',');
  for (const std::string& word : out) {
    require(!word.empty(), ErrorCode::usage, where, "an empty word in '", text, "'");
  }
  return out;
}

}  // namespace fovea::apps
