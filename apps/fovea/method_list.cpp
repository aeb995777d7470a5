#include "apps/fovea/method_list.h"

#include <algorithm>
#include <set>

#include "apps/fovea/number_list.h"
#include "core/attention/executor.h"
#include "core/attention/planner.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

// A planner and its options as typed.
struct Words {
  std::string planner;
  std::vector<std::string> options;  // KEY=VALUE
};

// Whether a part between commas goes on with a list of values rather than naming a planner.
bool is_value(const std::string& text) {
  const std::string first = split(text, '|')[0];
  if (first == "true" || first == "false") return true;
  return !first.empty() && first.find_first_not_of("0123456789.+-e") == std::string::npos;
}

std::vector<Words> read_words(const std::string& text, const std::string& where) {
  std::vector<Words> out;
  for (const std::string& part : split(text, ',')) {
    std::vector<std::string> pieces = split(part, ':');
    const bool has_options = !out.empty() && !out.back().options.empty();
    if (has_options && is_value(pieces[0])) {
      out.back().options.back() += "," + pieces[0];
    } else if (!out.empty() && pieces[0].find('=') != std::string::npos) {
      out.back().options.push_back(pieces[0]);
    } else {
      require(!pieces[0].empty(), ErrorCode::usage, where, "a method has no name in '", text, "'");
      out.push_back({pieces[0], {}});
    }
    out.back().options.insert(out.back().options.end(), pieces.begin() + 1, pieces.end());
  }
  return out;
}

// Every combination of values with "|" between.
std::vector<Words> expand(const Words& words) {
  std::vector<Words> out = {{words.planner, {}}};
  for (const std::string& option : words.options) {
    const size_t equals = option.find('=');
    const std::string key = option.substr(0, equals == std::string::npos ? 0 : equals + 1);
    std::vector<Words> longer;
    for (const Words& begun : out) {
      for (const std::string& value : split(option.substr(key.size()), '|')) {
        longer.push_back(begun);
        longer.back().options.push_back(key + value);
      }
    }
    out = std::move(longer);
  }
  return out;
}

Method method_of(const Words& words, const std::string& where) {
  constexpr std::string_view kExecutor = "executor=";
  Method out;
  std::vector<std::string> of_planner;
  for (const std::string& option : words.options) {
    if (option.starts_with(kExecutor)) {
      out.executor = option.substr(kExecutor.size());
      check_executor_name(make_executors(), out.executor);
    } else {
      of_planner.push_back(option);
    }
  }
  out.attention = {words.planner, parse_planner_options(of_planner, where)};
  make_planner(out.attention.planner, out.attention.options);  // throws for what it does not take
  out.label = words.planner;
  for (const std::string& option : words.options) out.label += " " + option;
  for (const char c : out.label) {
    const bool plain = std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_';
    out.name += plain ? c : '-';
  }
  return out;
}

}  // namespace

std::vector<Method> parse_methods(const std::vector<std::string>& texts, const std::string& where) {
  std::vector<Method> out;
  std::set<std::string> names;
  for (const std::string& text : texts) {
    for (const Words& words : read_words(text, where)) {
      for (const Words& single : expand(words)) {
        out.push_back(method_of(single, where));
        require(names.insert(out.back().name).second, ErrorCode::usage, where, "lists '",
                out.back().label, "' twice");
      }
    }
  }
  return out;
}

}  // namespace fovea::apps
