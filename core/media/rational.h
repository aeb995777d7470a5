#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fovea {

/// A positive fraction in lowest terms, for frame rates.
struct Rational {
  int64_t num = 24;  ///< frames
  int64_t den = 1;   ///< seconds

  double value() const { return static_cast<double>(num) / static_cast<double>(den); }
  /// "24" or "24000/1001".
  std::string text() const;
  bool operator==(const Rational&) const = default;
};

/// `num / den` in lowest terms; both at least 1.
Rational reduced(int64_t num, int64_t den);

/// Throws Error usage unless 0.01 <= rate <= 1000 frames a second, with num, den <= 10,000,000.
void check_frame_rate(Rational rate, std::string_view where);

/// Reads a frame rate: "24", "12.5", "24000/1001".
///
/// A decimal that is the rounded form of 24, 30, 48, 60 or 120 times 1000/1001, with at least two
/// places, means that broadcast rate: 23.976 and 23.98 are 24000/1001, 29.97 is 30000/1001. Every
/// other decimal is taken as written.
///
/// where   option named in errors
/// throws  Error usage for anything else, and as `check_frame_rate`
Rational parse_fps(std::string_view text, std::string_view where = "--fps");

}  // namespace fovea
