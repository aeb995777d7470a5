#include "models/text/tokenizer/tokenizer.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include <gtest/gtest.h>

#include "core/check.h"
#include "core/file.h"
#include "core/json.h"

namespace fovea::models {
namespace {

fs::path golden(const std::string& name) {
  return fs::path(std::getenv("FOVEA_GOLDEN_DIR")) / "tokenizer" / name;
}

void write(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// A folder of its own that holds `file` with `bytes`.
fs::path folder_with(const std::string& file, std::string_view bytes) {
  const fs::path folder =
      fs::path(testing::TempDir()) /
      (std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + "_tokenizer");
  fs::remove_all(folder);
  fs::create_directories(folder);
  write(folder / file, bytes);
  return folder;
}

ErrorCode open_error(const fs::path& folder, std::string* reason = nullptr) {
  try {
    Tokenizer::open(folder);
  } catch (const Error& error) {
    if (reason) *reason = error.what();
    return error.code();
  }
  return ErrorCode::internal;
}

class EqualIds : public testing::TestWithParam<const char*> {};

TEST_P(EqualIds, ForEveryString) {
  const std::string name = GetParam();
  const Json expected = read_json(golden(name + ".json"), {.max_bytes = 64u << 20});
  const Tokenizer tokenizer = Tokenizer::open(golden(name));
  EXPECT_EQ(tokenizer.vocab_size(), expected["vocab_size"].get<int64_t>());
  EXPECT_EQ(tokenizer.pad_id(), expected["pad_id"].get<int32_t>());
  EXPECT_EQ(tokenizer.eos_id(), expected["eos_id"].get<int32_t>());
  ASSERT_GE(expected["cases"].size(), 600u);
  for (const Json& test : expected["cases"]) {
    const auto text = test["text"].get<std::string>();
    if (name == "generic" && test["max_length"] == 1) {
      EXPECT_THROW(tokenizer.encode(text, 1), Error);
      continue;
    }
    ASSERT_EQ(tokenizer.encode(text, test["max_length"].get<int64_t>()),
              test["ids"].get<std::vector<int32_t>>())
        << test["text"].dump();
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, EqualIds,
                         testing::Values("spiece", "json", "spiece_extra", "json_extra", "identity",
                                         "umt5", "umt5_json", "old_style", "flags", "left",
                                         "generic"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Tokenizer, SpieceAndJsonGiveTheSameIds) {
  const Tokenizer from_spiece = Tokenizer::open(golden("spiece"));
  const Tokenizer from_json = Tokenizer::open(golden("json"), "T5TokenizerFast");
  const Json expected = read_json(golden("flags.json"), {.max_bytes = 64u << 20});
  for (const Json& test : expected["cases"]) {
    const auto text = test["text"].get<std::string>();
    ASSERT_EQ(from_spiece.encode(text, 512), from_json.encode(text, 512));
  }
}

TEST(Tokenizer, RefusesInvalidUtf8NamingTheByte) {
  const Tokenizer tokenizer = Tokenizer::open(golden("json"));
  for (const char* text :
       {"ab\xFF", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\xE2\x96"}) {
    try {
      tokenizer.encode(text, 512);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
      EXPECT_NE(error.reason().find("byte 2"), std::string::npos) << error.what();
    }
  }
}

TEST(Tokenizer, ReadsLongHostileTexts) {
  const Tokenizer tokenizer = Tokenizer::open(golden("flags"));
  const size_t bytes = 64u << 10;
  for (const std::string unit :
       {"a", "▁", " ", "</s>", "<", "e\u0301", "\u0301", "👨‍👩‍👧", "<mask> ", "word",
        "\x01", "<extra_id_", "  <obj>  "}) {
    std::string text;
    while (text.size() + unit.size() <= bytes) text += unit;
    EXPECT_LE(tokenizer.encode(text, 512).size(), 512u);
    EXPECT_GE(tokenizer.encode(text, 1 << 20).size(), 1u);
  }
}

TEST(Tokenizer, RefusesAFolderWithoutVocabulary) {
  const fs::path folder = folder_with("other.txt", "");
  std::string reason;
  EXPECT_EQ(open_error(folder, &reason), ErrorCode::bad_data);
  EXPECT_NE(reason.find("tokenizer.json"), std::string::npos) << reason;
}

struct Refusal {
  const char* pointer;  // where in tokenizer.json or tokenizer_config.json
  Json value;
  const char* named;  // what the error says
};

void expect_refused(const std::string& file, const std::string& source,
                    const std::vector<Refusal>& cases) {
  for (const Refusal& test : cases) {
    const fs::path folder =
        folder_with("tokenizer.json", read_file(golden(source) / "tokenizer.json", 1 << 26));
    fs::copy(golden(source) / "tokenizer_config.json", folder / "tokenizer_config.json");
    Json json = read_json(folder / file, {.max_bytes = 64u << 20});
    json[Json::json_pointer(test.pointer)] = test.value;
    write(folder / file, json.dump());
    std::string reason;
    EXPECT_EQ(open_error(folder, &reason), ErrorCode::bad_data)
        << test.pointer << " " << test.value;
    EXPECT_NE(reason.find(test.named), std::string::npos) << reason;
  }
}

TEST(Tokenizer, RefusesUnsupportedKeysByName) {
  expect_refused("tokenizer.json", "json",
                 {{"/model/type", "BPE", "model.type"},
                  {"/model/vocab", Json::object(), "model.vocab"},
                  {"/model/vocab/3/1", "x", "entry 3"},
                  {"/model/vocab", Json::array({Json::array({"a", 0.0})}), "unk_id"},
                  {"/normalizer/precompiled_charsmap", "AAA!", "base64"},
                  {"/normalizer/precompiled_charsmap", "/////w==", "precompiled_charsmap"},
                  {"/added_tokens/0/id", -1, "added_tokens"},
                  {"/padding", Json{{"direction", "Left"}}, "padding.direction"}});
  expect_refused("tokenizer_config.json", "json",
                 {{"/tokenizer_class", "LlamaTokenizer", "tokenizer_class"},
                  {"/padding_side", "left", "padding_side"},
                  {"/truncation_side", "up", "truncation_side"},
                  {"/extra_ids", -5, "extra_ids"},
                  {"/eos_token", nullptr, "eos_token"},
                  {"/pad_token", nullptr, "pad_token"},
                  {"/added_tokens_decoder", Json{{"x", "y"}}, "added_tokens_decoder"}});
  expect_refused("tokenizer.json", "generic",
                 {{"/normalizer", Json{{"type", "Lowercase"}}, "normalizer"},
                  {"/pre_tokenizer", Json{{"type", "ByteLevel"}}, "pre_tokenizer"},
                  {"/pre_tokenizer/prepend_scheme", "first", "prepend_scheme"},
                  {"/post_processor", Json{{"type", "BertProcessing"}}, "post_processor"},
                  {"/model/unk_id", nullptr, "unk_id"},
                  {"/model/unk_id", 100000, "unk_id"}});
}

// Changes a few bytes at random places, or cuts the text.
std::string mutated(std::string text, std::mt19937& random) {
  if (random() % 4 == 0) text.resize(random() % text.size());
  for (int changes = static_cast<int>(random() % 4) + 1; changes > 0 && !text.empty(); --changes) {
    const size_t at = random() % text.size();
    if (random() % 3 == 0) {
      text.erase(at, random() % 8 + 1);
    } else {
      text[at] = static_cast<char>(random());
    }
  }
  return text;
}

void expect_no_crash(const std::string& source, const std::string& file) {
  const std::string good = read_file(golden(source) / file, 1 << 26);
  std::mt19937 random(7);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    const fs::path folder = folder_with(file, mutated(good, random));
    fs::copy(golden(source) / "tokenizer_config.json", folder / "tokenizer_config.json");
    try {
      Tokenizer::open(folder).encode("Ａ red sphere </s> rolls ﬁ \u212b e\u0301 猫 &amp; x", 64);
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ErrorCode::bad_data || error.code() == ErrorCode::resource)
          << error.what();
      ++refused;
    }
  }
  EXPECT_GE(refused, 75);  // those that were cut, at the least
}

TEST(Tokenizer, SurvivesDamagedJson) { expect_no_crash("json", "tokenizer.json"); }
TEST(Tokenizer, SurvivesDamagedSpiece) { expect_no_crash("spiece", "spiece.model"); }

}  // namespace
}  // namespace fovea::models
