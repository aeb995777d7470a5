#include "models/text/tokenizer/word_tokenizer.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/check.h"
#include "core/file.h"
#include "core/json.h"
#include "models/text/tokenizer/tokenizer.h"
#include "tests/support/files.h"

namespace fovea::models {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using Ids = std::vector<int32_t>;

// The words of tests/golden/word_tokenizer_ids.py.
const std::vector<std::string> kWords = {"a",
                                         "an",
                                         "and",
                                         "red",
                                         "green",
                                         "blue",
                                         "sphere",
                                         "cube",
                                         "cylinder",
                                         "torus",
                                         "rolls",
                                         "spins",
                                         "bounces",
                                         "left",
                                         "right",
                                         "rests",
                                         "slowly",
                                         "static",
                                         "camera",
                                         "orbits",
                                         "moves",
                                         "closer",
                                         "semi-transparent",
                                         "on",
                                         "the",
                                         ",",
                                         "."};

// The ids of each piece of `pieces`, then that of `</s>`.
Ids ids_of(const Tokenizer& tokenizer, const std::vector<std::string>& pieces) {
  Ids ids;
  for (const std::string& piece : pieces) ids.push_back(tokenizer.token_id(piece).value_or(-1));
  ids.push_back(1);
  return ids;
}

TEST(WordTokenizer, WordsAreWholeAndOthersSpelled) {
  const TemporaryFolder folder;
  write_word_tokenizer(folder.path / "tokenizer", kWords);
  const Tokenizer tokenizer = Tokenizer::open(folder.path / "tokenizer", "T5Tokenizer");
  EXPECT_EQ(tokenizer.vocab_size(), word_vocab_size(kWords));
  EXPECT_EQ(tokenizer.pad_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.token_id("<unk>"), 2);
  EXPECT_EQ(tokenizer.token_id("▁a"), 3);
  const auto expect = [&](const char* text, const std::vector<std::string>& pieces) {
    EXPECT_EQ(tokenizer.encode(text, 512), ids_of(tokenizer, pieces)) << text;
  };
  expect("", {});
  expect("a red sphere rolls left, and a semi-transparent cube spins.",
         {"▁a", "▁red", "▁sphere", "▁rolls", "▁left", ",", "▁and", "▁a", "▁semi-transparent",
          "▁cube", "▁spins", "."});
  expect("red , blue", {"▁red", "▁,", "▁blue"});
  expect("Reds", {"▁", "R", "e", "d", "s"});
  expect("reds", {"▁red", "s"});
  expect("日 a日", {"▁", "<unk>", "▁a", "<unk>"});
  for (char c = '!'; c <= '~'; ++c) {
    for (const int32_t id : tokenizer.encode(std::string("x") + c, 512)) EXPECT_NE(id, 2) << c;
  }
}

TEST(WordTokenizer, PythonReadsTheSameIdsFromEitherFile) {
  const TemporaryFolder folder;
  write_word_tokenizer(folder.path / "both", kWords);
  fs::create_directory(folder.path / "spiece");
  for (const char* name : {"spiece.model", "tokenizer_config.json"}) {
    fs::copy_file(folder.path / "both" / name, folder.path / "spiece" / name);
  }
  const fs::path script =
      fs::path(std::getenv("FOVEA_SOURCE_DIR")) / "tests/golden/word_tokenizer_ids.py";
  const std::string command =
      str("'", std::getenv("FOVEA_PYTHON"), "' '", script.string(), "' '",
          (folder.path / "both").string(), "' '", (folder.path / "out.json").string(), "'");
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  const Json python = read_json(folder.path / "out.json");
  const Tokenizer from_json = Tokenizer::open(folder.path / "both");
  const Tokenizer from_spiece = Tokenizer::open(folder.path / "spiece");
  for (const auto& [reader, size] : python["sizes"].items()) {
    EXPECT_EQ(size, word_vocab_size(kWords)) << reader;
  }
  EXPECT_EQ(python["specials"], Json({0, 1, 2, -1}));
  ASSERT_GE(python["cases"].size(), 500u);
  for (const Json& test : python["cases"]) {
    const auto text = test["text"].get<std::string>();
    const Ids ids = from_json.encode(text, 4096);
    ASSERT_EQ(from_spiece.encode(text, 4096), ids) << test["text"].dump();
    ASSERT_GE(test["ids"].size(), 3u);
    for (const auto& [reader, expected] : test["ids"].items()) {
      ASSERT_EQ(ids, expected.get<Ids>()) << reader << ": " << test["text"].dump();
    }
  }
}

TEST(WordTokenizer, RefusesWhatIsNoWord) {
  const TemporaryFolder folder;
  for (const std::string& word : {std::string(), std::string("two words"), std::string("é"),
                                  std::string("tab\t"), std::string(101, 'x')}) {
    expect_error(ErrorCode::usage, "words", [&] {
      write_word_tokenizer(folder.path / "new", {"a", word});
    });
  }
  expect_error(ErrorCode::usage, "'a' is there twice", [] { word_vocab_size({"a", "b", "a"}); });
  expect_error(ErrorCode::usage, "',' is there twice", [] { word_vocab_size({",", ","}); });
  EXPECT_FALSE(fs::exists(folder.path / "new"));
}

}  // namespace
}  // namespace fovea::models
