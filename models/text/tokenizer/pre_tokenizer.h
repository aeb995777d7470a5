#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"

namespace fovea::models {

/// Cuts a normalized text into words, as the `pre_tokenizer` of a tokenizer.json says.
class PreTokenizer {
 public:
  PreTokenizer() = default;  ///< the whole text is one word
  /// What T5 does: split at white space, put ▁ before each word, cut before each ▁.
  static PreTokenizer t5();
  /// Reads the value of the key `pre_tokenizer`: null, WhitespaceSplit, Metaspace, or a Sequence.
  /// throws  Error bad_data naming the type or key that is not supported
  static PreTokenizer read(const Json& json, const std::string& where);

  /// text  valid UTF-8
  std::vector<std::string> split(std::string_view text) const;

 private:
  struct Step {
    bool white_space = false;  ///< split at white space; else a metaspace step
    std::string marker = "▁";  ///< stands for a space
    bool prepend = true;       ///< put the marker before a word that does not begin with it
    bool cut = true;           ///< cut before each marker
  };

  void read_step(const Json& json, const std::string& where);
  static void split_white_space(const std::string& text, std::vector<std::string>& out);
  static void split_markers(const Step& step, std::string text, std::vector<std::string>& out);

  std::vector<Step> steps_;
};

}  // namespace fovea::models
