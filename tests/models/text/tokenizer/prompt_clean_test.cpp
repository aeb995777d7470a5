#include "models/text/tokenizer/prompt_clean.h"

#include <cstdlib>
#include <filesystem>

#include <gtest/gtest.h>

#include "core/check.h"
#include "core/json.h"

namespace fovea::models {
namespace {

Json golden(const std::string& name) {
  const auto folder = std::filesystem::path(std::getenv("FOVEA_GOLDEN_DIR")) / "tokenizer";
  return read_json(folder / name, {.max_bytes = 64u << 20});
}

TEST(PromptClean, EqualsPythonOnRandomStrings) {
  const Json expected = golden("clean.json");
  ASSERT_GE(expected["cases"].size(), 2000u);
  for (const Json& test : expected["cases"]) {
    ASSERT_EQ(prompt_clean(test["text"].get<std::string>()), test["clean"].get<std::string>())
        << test["text"].dump();
  }
}

TEST(PromptClean, EqualsPythonOnEveryEntity) {
  for (const Json& test : golden("entities.json")) {
    ASSERT_EQ(prompt_clean(test["text"].get<std::string>()), test["clean"].get<std::string>())
        << test["text"].dump();
  }
}

TEST(PromptClean, RefusesInvalidUtf8AndLongPrompts) {
  try {
    prompt_clean("abc\xFFz");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    EXPECT_NE(error.reason().find("byte 3"), std::string::npos) << error.what();
  }
  EXPECT_EQ(prompt_clean(std::string(kMaxPromptBytes, 'x')).size(), kMaxPromptBytes);
  try {
    prompt_clean(std::string(kMaxPromptBytes + 1, 'x'));
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::resource);
  }
}

// Each of these takes Python quadratic time or many rounds; the test would run into its time limit.
TEST(PromptClean, ReadsLongHostileTexts) {
  std::string chain = "&";
  while (chain.size() + 7 < kMaxPromptBytes) chain += "amp;";
  EXPECT_EQ(prompt_clean(chain + "lt;"), "<");
  std::string marks = "a";
  while (marks.size() + 4 <= kMaxPromptBytes) marks += "\u0301\u0323";
  EXPECT_EQ(prompt_clean(marks).substr(0, 5), "\u1EA1\u0323");
  for (const std::string unit :
       {"&", "&#", "&#1", "\x1b[", "\x1b[1;", "&semi", "\r", "\u2028", "Ａ", "&lt", "<\n"}) {
    std::string text;
    while (text.size() + unit.size() <= kMaxPromptBytes) text += unit;
    EXPECT_LE(prompt_clean(text).size(), kMaxPromptBytes);
  }
}

}  // namespace
}  // namespace fovea::models
