#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/json.h"
#include "models/text/tokenizer/added_tokens.h"

namespace fovea::models {

/// What tokenizer_config.json (with the older special_tokens_map.json and added_tokens.json beside
/// it) says about a tokenizer, as transformers 5.23 reads it.
struct TokenizerConfig {
  std::string where;                             ///< file named in errors
  std::string class_name;                        ///< `tokenizer_class`, may be empty
  std::map<std::string, AddedToken> named;       ///< "eos_token", "pad_token", ... that are set
  std::set<std::string> unset;                   ///< such keys that are there and null
  std::optional<std::vector<AddedToken>> extra;  ///< `extra_special_tokens`
  std::optional<std::vector<AddedToken>>
      additional;                             ///< `additional_special_tokens` of the old map
  std::map<int64_t, AddedToken> added_by_id;  ///< `added_tokens_decoder`
  bool has_added_by_id = false;               ///< the key is there: tokenizer.json's are not used
  int64_t extra_ids = 100;                    ///< count of `<extra_id_N>` tokens
  bool split_special_tokens = false;
  std::optional<bool> truncate_left;  ///< `truncation_side`, where given
};

/// throws  Error bad_data naming the key that is malformed or not supported
TokenizerConfig read_tokenizer_config(const std::filesystem::path& folder);

/// The named tokens in the order in which transformers adds them.
std::vector<AddedToken> named_in_order(const TokenizerConfig& config);

/// An added token as the files spell it: text, or an object of flags.
/// special  value of the flag where the object does not say
AddedToken read_added_token(const Json& json, bool special, const std::string& where);

}  // namespace fovea::models
