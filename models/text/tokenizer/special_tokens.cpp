#include "models/text/tokenizer/special_tokens.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/check.h"
#include "core/file.h"
#include "models/text/tokenizer/json_fields.h"

namespace fovea::models {
namespace {

// Order in which transformers adds them.
constexpr std::array<const char*, 7> kNamedTokens = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
constexpr int64_t kMaxExtraIds = 100'000;
constexpr int64_t kMaxId = 1 << 30;

bool is_standard(const std::string& key) {
  return std::find(kNamedTokens.begin(), kNamedTokens.end(), key) != kNamedTokens.end();
}

std::vector<AddedToken> read_token_list(const Json& json, const std::string& where) {
  require(json.is_array(), ErrorCode::bad_data, where, "expected a list of special tokens");
  std::vector<AddedToken> out;
  for (const Json& token : json) out.push_back(read_added_token(token, true, where));
  return out;
}

void set_named(TokenizerConfig& config, const std::string& key, const Json& value) {
  config.named[key] = read_added_token(value, true, config.where);
}

bool given(const Json& json, const char* key) { return json.contains(key) && !json[key].is_null(); }

bool read_side(const Json& json, const char* key, const std::string& where) {
  const std::string& side = json_text(json, key, where);
  require(side == "left" || side == "right", ErrorCode::bad_data, where, "key '", key,
          "': expected 'left' or 'right', got '", printable(side, 40), "'");
  return side == "left";
}

void read_options(TokenizerConfig& config, const Json& json) {
  const std::string& where = config.where;
  if (given(json, "tokenizer_class")) config.class_name = json_text(json, "tokenizer_class", where);
  if (given(json, "extra_ids")) {
    const Json& count = json["extra_ids"];
    require(count.is_number_integer() && count >= 0 && count <= kMaxExtraIds, ErrorCode::bad_data,
            where, "key 'extra_ids': expected a count from 0 to ", kMaxExtraIds, ", got ",
            printable(count.dump(), 40));
    config.extra_ids = count.get<int64_t>();
  }
  config.split_special_tokens = json_flag(json, "split_special_tokens", false, where);
  if (given(json, "truncation_side"))
    config.truncate_left = read_side(json, "truncation_side", where);
  require(!given(json, "padding_side") || !read_side(json, "padding_side", where),
          ErrorCode::bad_data, where,
          "key 'padding_side': 'left' is not supported, padding goes to the right");
  require(!json.contains("fast_tokenizer_files"), ErrorCode::bad_data, where,
          "key 'fast_tokenizer_files' is not supported");
}

// Newer files list `extra_special_tokens`, older ones `additional_special_tokens`, which stand for
// them when they are not given or empty.
void read_extra_tokens(TokenizerConfig& config, const Json& json) {
  const Json extra = json.value("extra_special_tokens", Json());
  if (extra.is_object()) {
    for (const auto& [key, value] : extra.items()) set_named(config, key, value);
  }
  if (extra.is_array() && !extra.empty()) {
    config.extra = read_token_list(extra, config.where);
  } else if (json.contains("additional_special_tokens") && extra.empty()) {
    const Json& list = json["additional_special_tokens"];
    config.extra = list.is_null() ? std::vector<AddedToken>{} : read_token_list(list, config.where);
  } else if (json.contains("extra_special_tokens") && !extra.is_object()) {
    require(extra.empty(), ErrorCode::bad_data, config.where,
            "key 'extra_special_tokens': expected a list");
    config.extra.emplace();
  }
}

void read_named_tokens(TokenizerConfig& config, const Json& json) {
  for (const auto& [key, value] : json.items()) {
    if (!key.ends_with("_token")) continue;
    if (is_standard(key) && value.is_null()) config.unset.insert(key);
    // Other keys with this ending are special tokens when they hold a token.
    const bool is_token = value.is_string() || value.is_object();
    if (is_token || (is_standard(key) && !value.is_null())) set_named(config, key, value);
  }
}

void read_added_by_id(TokenizerConfig& config, const Json& json) {
  require(json.is_object(), ErrorCode::bad_data, config.where,
          "key 'added_tokens_decoder': expected an object");
  config.has_added_by_id = true;
  for (const auto& [key, value] : json.items()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    require(error == std::errc() && end == key.data() + key.size() && id >= 0 && id < kMaxId,
            ErrorCode::bad_data, config.where, "key 'added_tokens_decoder': expected ids, got '",
            printable(key, 40), "'");
    config.added_by_id[id] = read_added_token(value, false, config.where);
  }
}

// Files that folders of older versions hold instead of the key `added_tokens_decoder`.
void read_old_files(TokenizerConfig& config, const fs::path& folder) {
  if (const fs::path path = folder / "special_tokens_map.json"; fs::exists(path)) {
    const Json json = read_json(path);
    require(json.is_object(), ErrorCode::bad_data, path.string(), "expected an object");
    for (const auto& [key, value] : json.items()) {
      if (key == "additional_special_tokens") {
        config.additional = read_token_list(value, path.string());
      } else if (key == "extra_special_tokens" && value.is_array()) {
        if (!config.extra) config.extra.emplace();
        for (const Json& token : value) {
          config.extra->push_back(read_added_token(token, true, path.string()));
        }
      } else if (value.is_string() || value.is_object()) {
        set_named(config, key, value);
      }
    }
  }
  if (const fs::path path = folder / "added_tokens.json"; fs::exists(path)) {
    const Json json = read_json(path);
    require(json.is_object(), ErrorCode::bad_data, path.string(), "expected an object");
    for (const auto& [content, id] : json.items()) {
      require(id.is_number_integer() && id >= 0 && id < kMaxId, ErrorCode::bad_data, path.string(),
              "key '", printable(content, 40), "': expected an id");
      const auto same = [&](const auto& token) { return token.content == content; };
      const auto same_named = [&](const auto& entry) { return same(entry.second); };
      const bool special =
          std::any_of(config.named.begin(), config.named.end(), same_named) ||
          (config.extra && std::any_of(config.extra->begin(), config.extra->end(), same));
      config.added_by_id[id.get<int64_t>()] = {
          .content = content, .normalized = !special, .special = special};
    }
  }
}

}  // namespace

AddedToken read_added_token(const Json& json, bool special, const std::string& where) {
  AddedToken token;
  token.special = special;
  if (json.is_string()) {
    token.content = json.get<std::string>();
  } else {
    require(json.is_object(), ErrorCode::bad_data, where, "expected a special token, got ",
            printable(json.dump(-1, ' ', false, Json::error_handler_t::replace), 80));
    token.content = json_text(json, "content", where);
    token.special = json_flag(json, "special", special, where);
    token.single_word = json_flag(json, "single_word", false, where);
    token.lstrip = json_flag(json, "lstrip", false, where);
    token.rstrip = json_flag(json, "rstrip", false, where);
  }
  token.normalized =
      json.is_object() ? json_flag(json, "normalized", !token.special, where) : !token.special;
  return token;
}

TokenizerConfig read_tokenizer_config(const fs::path& folder) {
  TokenizerConfig config;
  const fs::path path = folder / "tokenizer_config.json";
  config.where = path.string();
  Json json = Json::object();
  if (fs::exists(path)) json = read_json(path);
  require(json.is_object(), ErrorCode::bad_data, config.where, "expected an object");
  read_options(config, json);
  read_extra_tokens(config, json);
  read_named_tokens(config, json);
  if (given(json, "added_tokens_decoder")) {
    read_added_by_id(config, json["added_tokens_decoder"]);
  } else {
    read_old_files(config, folder);
  }
  return config;
}

std::vector<AddedToken> named_in_order(const TokenizerConfig& config) {
  std::vector<AddedToken> out;
  for (const char* key : kNamedTokens) {
    if (const auto found = config.named.find(key); found != config.named.end()) {
      out.push_back(found->second);
    }
  }
  for (const auto& [key, token] : config.named) {
    if (!is_standard(key)) out.push_back(token);
  }
  return out;
}

}  // namespace fovea::models
