#include "core/media/rational.h"

#include <numeric>
#include <optional>

#include "core/check.h"

namespace fovea {
namespace {

constexpr int64_t kMaxTerm = 10'000'000;

// Nine digits at most, so that products of two stay inside 64 bits.
std::optional<int64_t> digits(std::string_view text) {
  if (text.empty() || text.size() > 9) return std::nullopt;
  int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    value = value * 10 + (c - '0');
  }
  return value;
}

std::optional<Rational> parse_decimal(std::string_view whole_text, std::string_view part_text) {
  const std::optional<int64_t> whole = digits(whole_text);
  const std::optional<int64_t> part = digits(part_text);
  if (!whole || !part || *whole > 1'000'000) return std::nullopt;
  int64_t scale = 1;
  for (size_t i = 0; i < part_text.size(); ++i) scale *= 10;
  const int64_t scaled = *whole * scale + *part;
  for (const int64_t base : {24, 30, 48, 60, 120}) {
    const int64_t rounded = (base * 2000 * scale + 1001) / 2002;
    if (scale >= 100 && scaled == rounded) return Rational{base * 1000, 1001};
  }
  if (scaled == 0) return std::nullopt;
  return reduced(scaled, scale);
}

std::optional<Rational> parse(std::string_view text) {
  if (const size_t slash = text.find('/'); slash != std::string_view::npos) {
    const std::optional<int64_t> num = digits(text.substr(0, slash));
    const std::optional<int64_t> den = digits(text.substr(slash + 1));
    if (!num || !den || *num == 0 || *den == 0) return std::nullopt;
    return reduced(*num, *den);
  }
  if (const size_t point = text.find('.'); point != std::string_view::npos) {
    return parse_decimal(text.substr(0, point), text.substr(point + 1));
  }
  const std::optional<int64_t> whole = digits(text);
  if (!whole || *whole == 0) return std::nullopt;
  return Rational{*whole, 1};
}

}  // namespace

std::string Rational::text() const { return den == 1 ? str(num) : str(num, "/", den); }

Rational reduced(int64_t num, int64_t den) {
  FOVEA_ASSERT(num > 0 && den > 0);
  const int64_t common = std::gcd(num, den);
  return {num / common, den / common};
}

void check_frame_rate(Rational rate, std::string_view where) {
  const bool terms = rate.num >= 1 && rate.den >= 1 && rate.num <= kMaxTerm && rate.den <= kMaxTerm;
  require(terms && rate.num <= 1000 * rate.den && rate.num * 100 >= rate.den, ErrorCode::usage,
          where, "expected 0.01 to 1000 frames a second (terms up to ", kMaxTerm, "), got ",
          rate.text());
}

Rational parse_fps(std::string_view text, std::string_view where) {
  const std::optional<Rational> rate = parse(text);
  require(rate.has_value(), ErrorCode::usage, where,
          "expected a frame rate such as 24, 23.976 or 24000/1001, got '", text, "'");
  check_frame_rate(*rate, where);
  return *rate;
}

}  // namespace fovea
