#include "core/config.h"

#include <cmath>

#include "core/check.h"

namespace fovea {
namespace {

// A JSON value as short text for messages.
std::string shown(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace), 80);
}

int64_t integer_of(const Config& config, const std::string& key, const Json& value, int64_t low,
                   int64_t high) {
  const std::string expected = str("expected an integer from ", low, " to ", high);
  if (!value.is_number_integer()) config.refuse(key, expected);
  const bool beyond =
      value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (beyond || value.get<int64_t>() < low || value.get<int64_t>() > high)
    config.refuse(key, expected);
  return value.get<int64_t>();
}

template <typename Texts>
std::string joined(const Texts& texts) {
  std::string out;
  for (const std::string& text : texts) out += (out.empty() ? "" : ", ") + text;
  return out;
}

}  // namespace

Config::Config(Json object, std::string where)
    : object_(std::move(object)), where_(std::move(where)) {
  require(object_.is_object(), ErrorCode::bad_data, where_, "expected a JSON object, got ",
          object_.type_name());
}

Config Config::read(const std::filesystem::path& path) { return {read_json(path), path.string()}; }

const Json* Config::find(const std::string& key) {
  known_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Config::has(const std::string& key) const {
  const auto found = object_.find(key);
  return found != object_.end() && !found->is_null();
}

int64_t Config::integer(const std::string& key, int64_t fallback, int64_t low, int64_t high) {
  const Json* value = find(key);
  return value == nullptr ? fallback : integer_of(*this, key, *value, low, high);
}

std::optional<int64_t> Config::optional_integer(const std::string& key, int64_t low, int64_t high) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  return integer_of(*this, key, *value, low, high);
}

double Config::number(const std::string& key, double fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) refuse(key, "expected a number");
  return value->get<double>();
}

bool Config::boolean(const std::string& key, bool fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) refuse(key, "expected true or false");
  return value->get<bool>();
}

std::string Config::text(const std::string& key, const std::string& fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) refuse(key, "expected a string");
  return value->get<std::string>();
}

std::vector<int64_t> Config::integers(const std::string& key, std::vector<int64_t> fallback,
                                      int64_t low, int64_t high) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  if (!value->is_array()) refuse(key, "expected an array of integers");
  std::vector<int64_t> out;
  for (const Json& item : *value) out.push_back(integer_of(*this, key, item, low, high));
  return out;
}

std::vector<double> Config::numbers(const std::string& key, std::vector<double> fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  std::vector<double> out;
  for (const Json& item : value->is_array() ? *value : Json::array({nullptr})) {
    if (!item.is_number()) refuse(key, "expected an array of numbers");
    out.push_back(item.get<double>());
  }
  return out;
}

std::vector<bool> Config::booleans(const std::string& key, std::vector<bool> fallback) {
  const Json* value = find(key);
  if (value == nullptr) return fallback;
  std::vector<bool> out;
  for (const Json& item : value->is_array() ? *value : Json::array({nullptr})) {
    if (!item.is_boolean()) refuse(key, "expected an array of true and false");
    out.push_back(item.get<bool>());
  }
  return out;
}

void Config::ignore(std::initializer_list<const char*> keys) {
  known_.insert(keys.begin(), keys.end());
}

void Config::refuse(const std::string& key, const std::string& reason) const {
  const auto found = object_.find(key);
  throw Error(ErrorCode::bad_data, where_,
              str("key '", key, "': ", reason, ", got ",
                  found == object_.end() ? "nothing" : shown(*found)));
}

std::vector<std::string> Config::unknown() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : object_.items()) {
    if (!known_.contains(key)) out.push_back("'" + printable(key, 80) + "'");
  }
  return out;
}

void Config::finish(Report& report) const {
  std::vector<std::string> keys = unknown();
  std::erase_if(keys, [](const std::string& key) { return key.starts_with("'_"); });
  if (keys.empty()) return;
  report.warn(where_, str("ignored unknown ", keys.size() == 1 ? "key " : "keys ", joined(keys)));
}

void Config::refuse_unknown() const {
  const std::vector<std::string> keys = unknown();
  require(keys.empty(), ErrorCode::bad_data, where_, "unknown ",
          keys.size() == 1 ? "option " : "options ", joined(keys), "; known: ", joined(known_));
}

}  // namespace fovea
