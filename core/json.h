#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace fovea {

/// JSON document with the keys of an object in file order.
using Json = nlohmann::ordered_json;

/// Caps that are checked before and while a document is parsed.
struct JsonLimits {
  size_t max_bytes = 16u << 20;  ///< size of the text
  int max_depth = 64;            ///< nesting of arrays and objects
};

/// Parses `text`; `where` names its file in errors.
///
/// throws  Error bad_data for malformed text (with the byte offset), too deep nesting, a key that
///         appears twice in an object, NaN or Infinity; resource above `limits.max_bytes`
Json parse_json(std::string_view text, const std::string& where, JsonLimits limits = {});

/// Reads a regular file and parses it; errors as `parse_json` and `read_file`.
Json read_json(const std::filesystem::path& path, JsonLimits limits = {});

}  // namespace fovea
