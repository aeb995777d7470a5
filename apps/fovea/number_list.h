#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace fovea::apps {

/// What stands between separators; empty parts too.
std::vector<std::string> split(const std::string& text, char separator);

/// "1024..8192*2" (times 2 up to 8192), "1000..4000+500" or a number, several of them with commas.
///
/// where   option, for messages
/// throws  Error usage for another text, a number below 1 or above 2^40, more than 1,000 numbers
std::vector<int64_t> parse_numbers(const std::string& text, const std::string& where);

/// "5x16x24": frames, height and width in tokens. throws Error usage
std::array<int64_t, 3> parse_grid(const std::string& text, const std::string& where);

/// Parts between commas, none of them empty. throws Error usage
std::vector<std::string> parse_words(const std::string& text, const std::string& where);

}  // namespace fovea::apps
