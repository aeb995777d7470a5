#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"
#include "core/report.h"

namespace fovea {

/// Typed, checked access to one JSON object of options, such as a model's `config.json`.
///
/// Each accessor throws Error bad_data that names the key, the type expected and the value found.
/// A key that is absent, or null where diffusers' default is not null, gives the default. Keys that
/// begin with "_" are diffusers' own book-keeping and never count as unknown.
class Config {
 public:
  /// where  file named in errors and warnings
  Config(Json object, std::string where);
  static Config read(const std::filesystem::path& path);

  bool has(const std::string& key) const;  ///< present and not null
  int64_t integer(const std::string& key, int64_t fallback, int64_t low, int64_t high);
  double number(const std::string& key, double fallback);
  bool boolean(const std::string& key, bool fallback);
  std::string text(const std::string& key, const std::string& fallback);
  std::optional<int64_t> optional_integer(const std::string& key, int64_t low, int64_t high);
  std::vector<int64_t> integers(const std::string& key, std::vector<int64_t> fallback, int64_t low,
                                int64_t high);
  std::vector<double> numbers(const std::string& key, std::vector<double> fallback);
  std::vector<bool> booleans(const std::string& key, std::vector<bool> fallback);

  /// Marks keys as known without reading them (values that change nothing in inference).
  void ignore(std::initializer_list<const char*> keys);
  /// Throws Error bad_data "key 'KEY': REASON, got VALUE".
  [[noreturn]] void refuse(const std::string& key, const std::string& reason) const;
  /// One warning for all keys that nobody asked for: an error under --strict.
  void finish(Report& report) const;
  /// For options that a user types: throws Error bad_data "unknown option 'KEY'; known: ..." with
  /// all keys that were asked for.
  void refuse_unknown() const;

  const std::string& where() const { return where_; }
  const Json& json() const { return object_; }

 private:
  const Json* find(const std::string& key);
  std::vector<std::string> unknown() const;

  Json object_;
  std::string where_;
  std::set<std::string> known_;
};

}  // namespace fovea
