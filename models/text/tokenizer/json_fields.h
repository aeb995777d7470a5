#pragma once

#include <string>

#include "core/check.h"
#include "core/json.h"

namespace fovea::models {

/// Member `key` of the object `json`. throws Error bad_data naming the key when it is not there
inline const Json& json_member(const Json& json, const char* key, const std::string& where) {
  require(json.is_object(), ErrorCode::bad_data, where, "expected an object with the key '", key,
          "'");
  const auto found = json.find(key);
  require(found != json.end(), ErrorCode::bad_data, where, "key '", key, "' is missing");
  return *found;
}

/// Text member `key`. throws Error bad_data naming the key when it is missing or not text
inline const std::string& json_text(const Json& json, const char* key, const std::string& where) {
  const Json& value = json_member(json, key, where);
  require(value.is_string(), ErrorCode::bad_data, where, "key '", key, "': expected text, got ",
          printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 80));
  return value.get_ref<const std::string&>();
}

/// Truth value of member `key`, `fallback` when absent or null. throws Error bad_data as
/// `json_text`
inline bool json_flag(const Json& json, const char* key, bool fallback, const std::string& where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return fallback;
  require(found->is_boolean(), ErrorCode::bad_data, where, "key '", key,
          "': expected true or false");
  return found->get<bool>();
}

}  // namespace fovea::models
