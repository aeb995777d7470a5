#pragma once

#include <string>
#include <vector>

#include "core/json.h"

namespace fovea {

/// What a run says about itself: warnings and fallbacks as they happen, and a JSON document of
/// facts that `--report` writes at the end.
///
/// A warning is printed once as a `warning:` line on standard error; the same text again is only
/// counted. In strict mode it throws instead.
class Report {
 public:
  explicit Report(bool strict = false) : strict_(strict) {}

  /// throws Error bad_data in strict mode
  void warn(const std::string& where, const std::string& text);
  /// Something slower or other than asked runs instead; the reason says why.
  /// throws Error device in strict mode
  void fallback(const std::string& where, const std::string& text);

  bool strict() const { return strict_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  const std::vector<std::string>& fallbacks() const { return fallbacks_; }

  /// Facts, by key; free for every stage to fill. `json()` adds warnings and fallbacks.
  Json facts = Json::object();
  Json json() const;

 private:
  bool strict_;
  std::vector<std::string> warnings_;
  std::vector<std::string> fallbacks_;
};

}  // namespace fovea
