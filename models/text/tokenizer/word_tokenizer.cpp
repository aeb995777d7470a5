#include "models/text/tokenizer/word_tokenizer.h"

#include <algorithm>
#include <bit>
#include <set>
#include <string_view>

#include "core/check.h"
#include "core/file.h"
#include "core/json.h"

namespace fovea::models {
namespace {

constexpr const char* kMark = "▁";
constexpr char kFirstCharacter = '!', kLastCharacter = '~';  // of printable ASCII, without space
constexpr size_t kMaxWordBytes = 100;
constexpr int kPadId = 0, kEosId = 1, kUnknownId = 2;  // T5Tokenizer of transformers 5 insists on 2
constexpr int kNumSpecials = 3;
constexpr const char* kSpecials[kNumSpecials] = {"<pad>", "</s>", "<unk>"};
// Fewer pieces win, and no two ways to cut a word score the same: every piece of several characters
// begins with the mark, so what follows it is spelled in one way. Both are exact in fp32.
constexpr double kWordScore = -1.0, kCharacterScore = -10.0;

struct Piece {
  std::string text;
  double score = 0.0;
};

bool is_word(const std::string& text) {
  return !text.empty() && text.size() <= kMaxWordBytes &&
         std::all_of(text.begin(), text.end(),
                     [](char c) { return c >= kFirstCharacter && c <= kLastCharacter; });
}

bool is_punctuation(const std::string& word) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return word.size() == 1 && !is_letter(word[0]);
}

std::vector<Piece> make_pieces(const std::vector<std::string>& words) {
  std::vector<Piece> pieces;
  std::set<std::string> seen;
  const auto add = [&](const std::string& text, double score) {
    if (seen.insert(text).second) pieces.push_back({text, score});
  };
  for (const char* special : kSpecials) add(special, 0.0);
  for (const std::string& word : words) {
    require(is_word(word), ErrorCode::usage, "words", "'", printable(word, 120),
            "' is no word of 1 to ", kMaxWordBytes, " printable ASCII characters");
    require(!seen.contains(kMark + word), ErrorCode::usage, "words", "'", word, "' is there twice");
    if (is_punctuation(word)) add(word, kWordScore);
    add(kMark + word, kWordScore);
  }
  add(kMark, kCharacterScore);
  for (char c = kFirstCharacter; c <= kLastCharacter; ++c) add(std::string(1, c), kCharacterScore);
  return pieces;
}

void write_file(const fs::path& path, std::string_view bytes) {
  AtomicFile file(path, /*overwrite=*/true);
  file.write(bytes);
  file.commit();
}

void write_json(const fs::path& path, const Json& json) { write_file(path, json.dump(2) + "\n"); }

Json added_token(int id) {
  return {{"id", id},        {"content", kSpecials[id]}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false},      {"special", true}};
}

// T5's: each text, and after a pair both, ends with `</s>`.
Json post_processor() {
  const auto text = [](const char* id) -> Json {
    return {{"Sequence", {{"id", id}, {"type_id", 0}}}};
  };
  const Json end = {{"SpecialToken", {{"id", kSpecials[kEosId]}, {"type_id", 0}}}};
  const Json token = {
      {"id", kSpecials[kEosId]}, {"ids", {kEosId}}, {"tokens", {kSpecials[kEosId]}}};
  return {{"type", "TemplateProcessing"},
          {"single", Json::array({text("A"), end})},
          {"pair", Json::array({text("A"), end, text("B"), end})},
          {"special_tokens", {{kSpecials[kEosId], token}}}};
}

Json tokenizer_json(const std::vector<Piece>& pieces) {
  const Json metaspace = {
      {"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", "always"}, {"split", true}};
  Json vocab = Json::array();
  for (const Piece& piece : pieces) vocab.push_back(Json::array({piece.text, piece.score}));
  Json added = Json::array();
  for (int id = 0; id < kNumSpecials; ++id) added.push_back(added_token(id));
  return {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "Sequence"},
        {"pretokenizers", Json::array({{{"type", "WhitespaceSplit"}}, metaspace})}}},
      {"post_processor", post_processor()},
      {"decoder", metaspace},
      {"model",
       {{"type", "Unigram"}, {"unk_id", kUnknownId}, {"vocab", vocab}, {"byte_fallback", false}}}};
}

Json tokenizer_config() {
  return {{"backend", "tokenizers"},
          {"eos_token", kSpecials[kEosId]},
          {"extra_ids", 0},
          {"model_max_length", 512},
          {"pad_token", kSpecials[kPadId]},
          {"tokenizer_class", "T5Tokenizer"},
          {"unk_token", kSpecials[kUnknownId]}};
}

// One message of protocol buffers, field by field.
class Message {
 public:
  Message& integer(uint64_t field, int64_t value) {
    varint(field << 3);
    varint(static_cast<uint64_t>(value));
    return *this;
  }
  Message& bytes(uint64_t field, std::string_view value) {
    varint(field << 3 | 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& number(uint64_t field, float value) {
    varint(field << 3 | 5);
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes_ += static_cast<char>(bits >> shift & 0xFF);
    return *this;
  }
  const std::string& text() const { return bytes_; }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// Field numbers and enumerators of sentencepiece_model.proto.
std::string spiece_model(const std::vector<Piece>& pieces) {
  enum : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUnigram = 1 };
  Message model;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const int64_t type = id >= kNumSpecials ? kNormal : id == kUnknownId ? kUnknown : kControl;
    model.bytes(1, Message()
                       .bytes(1, pieces[id].text)
                       .number(2, static_cast<float>(pieces[id].score))
                       .integer(3, type)
                       .text());
  }
  const std::string trainer = Message()
                                  .integer(3, kUnigram)
                                  .integer(4, static_cast<int64_t>(pieces.size()))
                                  .integer(40, kUnknownId)
                                  .integer(41, -1)  // there is no token for the beginning
                                  .integer(42, kEosId)
                                  .integer(43, kPadId)
                                  .text();
  const std::string normalizer = Message()
                                     .bytes(1, "identity")
                                     .integer(3, 1)  // add_dummy_prefix
                                     .integer(4, 1)  // remove_extra_whitespaces
                                     .integer(5, 1)  // escape_whitespaces
                                     .text();
  return model.bytes(2, trainer).bytes(3, normalizer).text();
}

}  // namespace

void write_word_tokenizer(const fs::path& folder, const std::vector<std::string>& words) {
  const std::vector<Piece> pieces = make_pieces(words);
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_errno(error.value(), folder, "make the folder");
  write_json(folder / "tokenizer.json", tokenizer_json(pieces));
  write_file(folder / "spiece.model", spiece_model(pieces));
  write_json(folder / "tokenizer_config.json", tokenizer_config());
}

int64_t word_vocab_size(const std::vector<std::string>& words) {
  return static_cast<int64_t>(make_pieces(words).size());
}

}  // namespace fovea::models
