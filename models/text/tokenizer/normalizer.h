#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/json.h"
#include "models/text/tokenizer/charsmap.h"

namespace fovea::models {

/// What is done to a text before it is cut into words, as the `normalizer` of a tokenizer.json
/// says.
class Normalizer {
 public:
  Normalizer() = default;  ///< changes nothing
  explicit Normalizer(Charsmap charsmap) { steps_.emplace_back(std::move(charsmap)); }
  /// Reads the value of the key `normalizer`: null, Precompiled, Strip, Replace (of a string, or of
  /// the pattern " {2,}"), NFC, NFD, NFKC, NFKD, or a Sequence of them.
  /// throws  Error bad_data naming the type or key that is not supported
  static Normalizer read(const Json& json, const std::string& where);

  /// text  valid UTF-8
  std::string normalize(std::string_view text) const;

 private:
  struct Strip {
    bool left = true;
    bool right = true;
  };
  struct Replace {
    std::string from;  ///< replaced wherever it occurs
    std::string to;
  };
  struct ReplaceSpaces {
    std::string to;  ///< stands for each run of two or more spaces
  };
  struct UnicodeForm {
    bool compatibility = false;
    bool compose = true;
  };
  using Step = std::variant<Charsmap, Strip, Replace, ReplaceSpaces, UnicodeForm>;

  void read_step(const Json& json, const std::string& where);
  void read_replace(const Json& json, const std::string& where);
  static std::string apply(const Charsmap& charsmap, std::string text);
  static std::string apply(const Strip& strip, std::string text);
  static std::string apply(const Replace& replace, std::string text);
  static std::string apply(const ReplaceSpaces& replace, std::string text);
  static std::string apply(const UnicodeForm& form, std::string text);

  std::vector<Step> steps_;
};

}  // namespace fovea::models
