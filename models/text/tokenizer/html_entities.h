#pragma once

#include <string>
#include <string_view>

namespace fovea::models {

/// Replaces HTML character references as Python's html.unescape does: numeric ones, names with and
/// without their semicolon, the longest name that begins an unknown one.
///
/// differs  a decimal reference of more than 4,300 digits is U+FFFD, where Python raises
std::u32string unescape_html(std::u32string_view text);

/// Replaces the references that ftfy's unescape_html takes for meant: those that end in a semicolon
/// and are known as a whole, also in capitals. A reference to "&" that makes a new one is followed.
std::u32string unescape_whole_references(std::u32string_view text);

}  // namespace fovea::models
