#include "core/json.h"

#include "core/check.h"
#include "core/file.h"

namespace fovea {

Json parse_json(std::string_view text, const std::string& where, JsonLimits limits) {
  require(text.size() <= limits.max_bytes, ErrorCode::resource, where, "has ", text.size(),
          " bytes of JSON, at most ", limits.max_bytes, " are read");
  // Depth is checked before parsing, so that nesting never reaches the parser's stack.
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      require(++depth <= limits.max_depth, ErrorCode::bad_data, where, "byte ", i, ": nested deeper than ",
              limits.max_depth);
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw Error(ErrorCode::bad_data, where, str("malformed JSON at byte ", error.byte));
  } catch (const Json::exception& error) {
    throw Error(ErrorCode::bad_data, where, str("malformed JSON: ", error.what()));
  }
}

Json read_json(const std::filesystem::path& path, JsonLimits limits) {
  return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

}  // namespace fovea
