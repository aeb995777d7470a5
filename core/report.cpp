#include "core/report.h"

#include <algorithm>
#include <cstdio>

#include "core/check.h"

namespace fovea {
namespace {

// Adds `line` and prints it unless it is there already.
void add_once(std::vector<std::string>& lines, const char* kind, const std::string& line) {
  if (std::find(lines.begin(), lines.end(), line) != lines.end()) return;
  lines.push_back(line);
  std::fprintf(stderr, "%s: %s\n", kind, line.c_str());
}

}  // namespace

void Report::warn(const std::string& where, const std::string& text) {
  if (strict_) throw Error(ErrorCode::bad_data, where, text + " (--strict)");
  add_once(warnings_, "warning", printable(where) + ": " + printable(text, 2000));
}

void Report::fallback(const std::string& where, const std::string& text) {
  if (strict_) throw Error(ErrorCode::device, where, text + " (--strict)");
  add_once(fallbacks_, "fallback", printable(where) + ": " + printable(text, 2000));
}

Json Report::json() const {
  Json out = facts;
  out["warnings"] = warnings_;
  out["fallbacks"] = fallbacks_;
  return out;
}

}  // namespace fovea
