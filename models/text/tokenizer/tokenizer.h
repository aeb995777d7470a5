#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "models/text/tokenizer/added_tokens.h"
#include "models/text/tokenizer/normalizer.h"
#include "models/text/tokenizer/pre_tokenizer.h"
#include "models/text/tokenizer/unigram.h"

namespace fovea::models {

/// What a tokenizer is made of, whatever file it came from.
struct TokenizerParts {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Unigram model;
  AddedTokens added;
  std::vector<int32_t> prefix;  ///< ids put before every text
  std::vector<int32_t> suffix;  ///< ids put after every text, such as that of `</s>`
  int32_t pad_id = 0;
  int32_t eos_id = -1;         ///< -1: the tokenizer has none
  bool truncate_left = false;  ///< drop the first tokens of a text that is too long, not the last
};

/// T5's and UMT5's tokenizer (Unigram): text to ids, equal to transformers 5.23.
///
/// Thread-safe once it is made.
class Tokenizer {
 public:
  /// Reads FOLDER/tokenizer.json, or FOLDER/spiece.model where that is alone, and
  /// FOLDER/tokenizer_config.json where it is there.
  ///
  /// class_name  the class that model_index.json names. T5Tokenizer and T5TokenizerFast build the
  ///             tokenizer from the vocabulary, the charsmap and the added tokens alone, as
  ///             transformers does; PreTrainedTokenizerFast and TokenizersBackend take all of
  ///             tokenizer.json. Empty: the class of tokenizer_config.json, else T5Tokenizer
  /// throws      Error bad_data for a missing or malformed file, or naming the key that is not
  ///             supported; resource for a tokenizer.json above 64 MiB
  static Tokenizer open(const std::filesystem::path& folder, const std::string& class_name = "");

  explicit Tokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  /// Ids of `text` with the special tokens around it, cut to `max_length` ids in all, as the Python
  /// tokenizer gives with truncation=True and add_special_tokens=True. Not padded.
  ///
  /// throws  Error bad_data naming the byte offset for invalid UTF-8, usage when max_length leaves
  ///         no room for the special tokens
  std::vector<int32_t> encode(std::string_view text, int64_t max_length) const;

  /// One above the largest id.
  int64_t vocab_size() const;
  int32_t pad_id() const { return parts_.pad_id; }
  int32_t eos_id() const { return parts_.eos_id; }
  /// Id of a piece or added token, if there is one.
  std::optional<int32_t> token_id(const std::string& token) const;

 private:
  void encode_words(std::string_view normalized, std::vector<int32_t>& ids) const;

  TokenizerParts parts_;
};

}  // namespace fovea::models
