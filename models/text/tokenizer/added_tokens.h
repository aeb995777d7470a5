#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "models/text/tokenizer/prefix_matcher.h"
#include "models/text/tokenizer/unigram.h"

namespace fovea::models {

/// A token that is found in the text before the model sees it, such as `</s>`.
struct AddedToken {
  std::string content;
  bool single_word = false;  ///< only where no word character touches it
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< takes the white space after it along
  bool normalized = true;    ///< searched for in the normalized text, else in the raw one
  bool special = false;

  bool operator==(const AddedToken&) const = default;
};

/// A stretch of text between added tokens, or (id >= 0) an added token.
struct TextPiece {
  std::string_view text;
  int32_t id = -1;
};

/// The added tokens of a tokenizer, with the bookkeeping of the tokenizers library: a token that is
/// a piece of the model keeps its id, others are numbered after the model's.
class AddedTokens {
 public:
  void add(const AddedToken& token, const Unigram& model);
  /// Prepares `split_raw` and `split_normalized`; call it after the last `add`.
  /// split_special  leave special tokens in the text
  /// throws  Error bad_data for a token that normalization leaves empty
  void finish(const std::function<std::string(std::string_view)>& normalize, bool split_special,
              const std::string& where);

  /// Cuts out the tokens that are searched for in raw text. The pieces point into `text`.
  std::vector<TextPiece> split_raw(std::string_view text) const { return split(text, raw_); }
  /// Cuts out those that are searched for in normalized text.
  std::vector<TextPiece> split_normalized(std::string_view text) const {
    return split(text, normalized_);
  }
  /// Id of an added token or of a piece of the model, or -1.
  int32_t id(const std::string& content, const Unigram& model) const;
  /// One above the largest id of an added token.
  int64_t end_id() const;

 private:
  std::vector<TextPiece> split(std::string_view text, const PrefixMatcher& matcher) const;

  std::vector<AddedToken> special_;
  std::vector<AddedToken> plain_;
  std::set<std::string> special_contents_;
  std::map<std::string, int32_t> ids_;
  std::map<int32_t, AddedToken> by_id_;
  PrefixMatcher raw_;
  PrefixMatcher normalized_;
  bool split_special_ = false;
};

}  // namespace fovea::models
