#pragma once

#include <string>
#include <string_view>

namespace fovea::models {

/// The largest prompt that is read, in bytes.
inline constexpr size_t kMaxPromptBytes = size_t{64} << 10;

/// A prompt as diffusers' pipelines clean it before they tokenize it (`prompt_clean` of
/// pipeline_wan.py): ftfy's fix_text, HTML references replaced twice, stripped, and each run of
/// white space made one space.
///
/// where    names the prompt in errors
/// throws   Error bad_data naming the byte offset for invalid UTF-8, resource above 64 KiB
/// source   ftfy 6.3.1, Python's html and re modules
/// differs  wrongly decoded text ("mojibake") is left as it is
std::string prompt_clean(std::string_view prompt, std::string_view where = "prompt");

}  // namespace fovea::models
