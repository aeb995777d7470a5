#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

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
/// throws  Error bad_data with the byte offset for malformed text or too deep nesting, resource
///         above `limits.max_bytes`
Json parse_json(std::string_view text, const std::string& where, JsonLimits limits = {});

/// Reads a regular file and parses it; errors as `parse_json` and `read_file`.
Json read_json(const std::filesystem::path& path, JsonLimits limits = {});

}  // namespace fovea
