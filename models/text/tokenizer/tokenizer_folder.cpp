#include "models/text/tokenizer/tokenizer_folder.h"

#include <algorithm>

#include "core/check.h"
#include "core/file.h"
#include "models/text/tokenizer/json_fields.h"
#include "models/text/tokenizer/sentencepiece_model.h"
#include "models/text/tokenizer/special_tokens.h"

namespace fovea::models {
namespace {

constexpr size_t kMaxFileBytes = size_t{64} << 20;
// T5Tokenizer of transformers 5 takes this piece for unknown text whatever the file says.
constexpr int64_t kT5UnknownId = 2;

// What the vocabulary file holds.
struct Vocabulary {
  std::string where;
  ScoredPieces pieces;
  std::vector<AddedToken> piece_tokens;  // spiece.model: control and user-defined pieces
  std::optional<Charsmap> charsmap;
  Json json;  // tokenizer.json without the pieces; null for spiece.model
};

ScoredPieces take_pieces(Json& model, const std::string& where) {
  const Json& type = json_member(model, "type", where);
  require(type == "Unigram", ErrorCode::bad_data, where,
          "key 'model.type': expected 'Unigram', got ",
          printable(type.dump(-1, ' ', false, Json::error_handler_t::replace), 80));
  const Json& vocab = json_member(model, "vocab", where);
  require(vocab.is_array(), ErrorCode::bad_data, where, "key 'model.vocab': expected a list");
  ScoredPieces pieces;
  pieces.reserve(vocab.size());
  for (const Json& piece : vocab) {
    require(piece.is_array() && piece.size() == 2 && piece[0].is_string() && piece[1].is_number(),
            ErrorCode::bad_data, where, "key 'model.vocab': entry ", pieces.size(),
            ": expected [text, number]");
    pieces.emplace_back(piece[0].get_ref<const std::string&>(), piece[1].get<double>());
  }
  model.erase("vocab");
  return pieces;
}

// The first charsmap of a normalizer or of a sequence of them; T5Tokenizer uses nothing else of it.
std::optional<Charsmap> find_charsmap(const Json& normalizer, const std::string& where) {
  if (normalizer.is_null()) return std::nullopt;
  Json steps = Json::array({normalizer});
  if (json_member(normalizer, "type", where) == "Sequence") {
    steps = json_member(normalizer, "normalizers", where);
  }
  for (const Json& step : steps) {
    if (step.is_object() && step.value("type", Json()) == "Precompiled" &&
        step.contains("precompiled_charsmap")) {
      return Charsmap(decode_base64(json_text(step, "precompiled_charsmap", where), where), where);
    }
  }
  return std::nullopt;
}

Vocabulary read_tokenizer_json(const fs::path& path) {
  Vocabulary out;
  out.where = path.string();
  out.json = read_json(path, {.max_bytes = kMaxFileBytes});
  require(out.json.is_object(), ErrorCode::bad_data, out.where, "expected an object");
  require(out.json.contains("model"), ErrorCode::bad_data, out.where, "key 'model' is missing");
  out.pieces = take_pieces(out.json["model"], out.where);
  out.charsmap = find_charsmap(out.json.value("normalizer", Json()), out.where);
  return out;
}

// Adds the `<extra_id_N>` pieces that T5's conversion puts after those of the file, last one first.
Vocabulary read_spiece_model(const fs::path& path, int64_t extra_ids) {
  Vocabulary out;
  out.where = path.string();
  SentencepieceModel model = parse_sentencepiece_model(read_file(path, kMaxFileBytes), out.where);
  using Type = SentencepieceModel::Type;
  for (SentencepieceModel::Piece& piece : model.pieces) {
    if (piece.type == Type::control || piece.type == Type::user_defined) {
      out.piece_tokens.push_back(
          {.content = piece.text, .normalized = false, .special = piece.type == Type::control});
    }
    out.pieces.emplace_back(std::move(piece.text), piece.score);
  }
  for (int64_t i = extra_ids - 1; i >= 0; --i)
    out.pieces.emplace_back(str("<extra_id_", i, ">"), 0.0);
  if (!model.charsmap.empty()) out.charsmap.emplace(model.charsmap, out.where);
  return out;
}

// T5Tokenizer's rule for `additional_special_tokens`: all extra ids, or those that are listed.
std::vector<AddedToken> t5_additional(std::optional<std::vector<AddedToken>> listed,
                                      const TokenizerConfig& config) {
  std::vector<AddedToken> out;
  if (listed) out = std::move(*listed);
  const auto is_extra = [](const AddedToken& token) {
    return token.content.find("<extra_id_") != std::string::npos;
  };
  const int64_t count = std::count_if(out.begin(), out.end(), is_extra);
  if (count == 0) {
    for (int64_t i = 0; i < config.extra_ids; ++i) {
      out.push_back({.content = str("<extra_id_", i, ">"), .normalized = false, .special = true});
    }
  }
  require(count == 0 || config.extra_ids == 0 || config.extra_ids == count, ErrorCode::bad_data,
          config.where, "key 'extra_ids': expected the ", count, " listed tokens, got ",
          config.extra_ids);
  return out;
}

// The order decides about the ids of tokens that are no pieces of the model.
AddedTokens collect_added(const TokenizerConfig& config, const std::vector<AddedToken>& listed,
                          const std::vector<AddedToken>& extra, const Unigram& model) {
  AddedTokens added;
  std::vector<std::string> present;
  for (const AddedToken& token : listed) {
    present.push_back(token.content);
    added.add(token, model);
  }
  for (auto [id, token] : config.added_by_id) {
    for (const auto& [key, named] : config.named) token.special |= named.content == token.content;
    present.push_back(token.content);
    added.add(token, model);
  }
  const auto add_new = [&](AddedToken token) {
    if (std::find(present.begin(), present.end(), token.content) == present.end()) {
      added.add(token, model);
    }
  };
  for (const AddedToken& token : named_in_order(config)) add_new(token);
  for (const AddedToken& token : extra) add_new(token);
  return added;
}

int32_t required_id(const AddedTokens& added, const Unigram& model, const TokenizerConfig& config,
                    const char* key) {
  const auto named = config.named.find(key);
  require(named != config.named.end(), ErrorCode::bad_data, config.where, "key '", key,
          "' is missing");
  const int32_t id = added.id(named->second.content, model);
  require(id >= 0, ErrorCode::bad_data, config.where, "key '", key, "': '",
          printable(named->second.content, 40), "' is not in the vocabulary");
  return id;
}

// Ids that a TemplateProcessing puts around a single text.
void read_template(const Json& json, const std::string& where, TokenizerParts& parts) {
  if (json.is_null()) return;
  require(json_text(json, "type", where) == "TemplateProcessing", ErrorCode::bad_data, where,
          "key 'post_processor': type '", printable(json_text(json, "type", where), 80),
          "' is not supported");
  const Json& specials = json_member(json, "special_tokens", where);
  bool after_text = false;
  for (const Json& part : json_member(json, "single", where)) {
    if (part.is_object() && part.contains("Sequence")) {
      require(!after_text, ErrorCode::bad_data, where, "key 'post_processor': the text twice");
      after_text = true;
      continue;
    }
    const std::string& name = json_text(json_member(part, "SpecialToken", where), "id", where);
    const Json& ids = json_member(json_member(specials, name.c_str(), where), "ids", where);
    for (const Json& id : ids) {
      require(id.is_number_integer() && id >= 0 && id < (1 << 30), ErrorCode::bad_data, where,
              "key 'post_processor': expected an id");
      (after_text ? parts.suffix : parts.prefix).push_back(id.get<int32_t>());
    }
  }
  require(after_text, ErrorCode::bad_data, where, "key 'post_processor': no place for the text");
}

bool json_truncates_left(const Json& json, const std::string& where) {
  const Json truncation = json.value("truncation", Json());
  if (!truncation.is_object() || !truncation.contains("direction")) return false;
  return json_text(truncation, "direction", where) == "Left";
}

void finish_parts(TokenizerParts& parts, const TokenizerConfig& config,
                  const Vocabulary& vocabulary) {
  parts.added.finish([&](std::string_view text) { return parts.normalizer.normalize(text); },
                     config.split_special_tokens, vocabulary.where);
  parts.pad_id = required_id(parts.added, parts.model, config, "pad_token");
  if (config.named.contains("eos_token")) {
    parts.eos_id = required_id(parts.added, parts.model, config, "eos_token");
  }
  parts.truncate_left = config.truncate_left.value_or(
      !vocabulary.json.is_null() && json_truncates_left(vocabulary.json, vocabulary.where));
  const Json padding =
      vocabulary.json.is_null() ? Json() : vocabulary.json.value("padding", Json());
  require(!padding.is_object() || padding.value("direction", Json()) != "Left", ErrorCode::bad_data,
          vocabulary.where, "key 'padding.direction': 'Left' is not supported");
}

// The key `added_tokens` of tokenizer.json, by id.
std::map<int64_t, AddedToken> read_json_added(const Vocabulary& vocabulary) {
  std::map<int64_t, AddedToken> out;
  const Json list = vocabulary.json.value("added_tokens", Json::array());
  require(list.is_array(), ErrorCode::bad_data, vocabulary.where,
          "key 'added_tokens': expected a list");
  for (const Json& token : list) {
    const Json& id = json_member(token, "id", vocabulary.where);
    require(id.is_number_integer() && id >= 0 && id < (1 << 30), ErrorCode::bad_data,
            vocabulary.where, "key 'added_tokens': expected ids");
    out[id.get<int64_t>()] = read_added_token(token, false, vocabulary.where);
  }
  return out;
}

void set_t5_defaults(TokenizerConfig& config) {
  for (const auto& [key, content] :
       {std::pair("eos_token", "</s>"), std::pair("unk_token", "<unk>"),
        std::pair("pad_token", "<pad>")}) {
    if (config.named.contains(key) || config.unset.contains(key)) continue;
    config.named[key] = {.content = content, .normalized = false, .special = true};
  }
}

TokenizerParts build_t5(TokenizerConfig config, const Vocabulary& vocabulary) {
  const bool from_json = !vocabulary.json.is_null();
  if (from_json && !config.has_added_by_id) {
    for (const auto& [id, token] : read_json_added(vocabulary)) config.added_by_id[id] = token;
  }
  const std::vector<AddedToken> extra =
      config.extra ? *config.extra
                   : t5_additional(from_json ? config.additional : vocabulary.piece_tokens, config);
  Unigram model(vocabulary.pieces, {.unk_id = kT5UnknownId}, vocabulary.where);
  AddedTokens added = collect_added(config, {}, extra, model);
  const int32_t eos_id = required_id(added, model, config, "eos_token");
  return {.normalizer = vocabulary.charsmap ? Normalizer(*vocabulary.charsmap) : Normalizer(),
          .pre_tokenizer = PreTokenizer::t5(),
          .model = std::move(model),
          .added = std::move(added),
          .suffix = {eos_id}};
}

TokenizerParts build_from_json(const TokenizerConfig& config, const Vocabulary& vocabulary) {
  const Json& json = vocabulary.json;
  const Json& options = json["model"];
  const Json& unk_id = json_member(options, "unk_id", vocabulary.where);
  require(unk_id.is_number_integer(), ErrorCode::bad_data, vocabulary.where,
          "key 'model.unk_id': expected an id");
  Unigram model(vocabulary.pieces,
                {.unk_id = unk_id.get<int64_t>(),
                 .byte_fallback = json_flag(options, "byte_fallback", false, vocabulary.where)},
                vocabulary.where);
  std::vector<AddedToken> listed;
  for (const auto& [id, token] : read_json_added(vocabulary)) listed.push_back(token);
  AddedTokens added =
      collect_added(config, listed, config.extra.value_or(std::vector<AddedToken>{}), model);
  TokenizerParts parts{
      .normalizer = Normalizer::read(json.value("normalizer", Json()), vocabulary.where),
      .pre_tokenizer = PreTokenizer::read(json.value("pre_tokenizer", Json()), vocabulary.where),
      .model = std::move(model),
      .added = std::move(added)};
  read_template(json.value("post_processor", Json()), vocabulary.where, parts);
  return parts;
}

}  // namespace

TokenizerParts read_tokenizer_folder(const fs::path& folder, const std::string& class_name) {
  TokenizerConfig config = read_tokenizer_config(folder);
  const std::string name = class_name.empty() ? config.class_name : class_name;
  const bool is_t5 = name.empty() || name == "T5Tokenizer" || name == "T5TokenizerFast";
  require(is_t5 || name == "PreTrainedTokenizerFast" || name == "TokenizersBackend",
          ErrorCode::bad_data, config.where, "key 'tokenizer_class': '", printable(name, 80),
          "' is not supported");
  if (is_t5) set_t5_defaults(config);
  const fs::path json_path = folder / "tokenizer.json";
  const fs::path spiece_path = folder / "spiece.model";
  const bool from_json = fs::exists(json_path) || !fs::exists(spiece_path);
  require(from_json || is_t5, ErrorCode::bad_data, spiece_path.string(),
          "is read by T5Tokenizer, not by ", printable(name, 80));
  const Vocabulary vocabulary =
      from_json ? read_tokenizer_json(json_path) : read_spiece_model(spiece_path, config.extra_ids);
  TokenizerParts parts = is_t5 ? build_t5(config, vocabulary) : build_from_json(config, vocabulary);
  finish_parts(parts, config, vocabulary);
  return parts;
}

}  // namespace fovea::models
