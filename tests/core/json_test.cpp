#include "core/json.h"

#include <random>

#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

Json random_value(std::mt19937& random, int depth) {
  switch (random() % (depth > 0 ? 8 : 6)) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return static_cast<int64_t>(random()) - (int64_t{1} << 31);
    case 3:
      return static_cast<uint64_t>(random()) << 32;
    case 4:
      return static_cast<double>(random()) / 7;
    case 5:
      return "text \"\\\n\xc3\xbc" + std::to_string(random() % 100);
    case 6: {
      Json array = Json::array();
      for (size_t i = random() % 5; i > 0; --i) array.push_back(random_value(random, depth - 1));
      return array;
    }
    default: {
      Json object = Json::object();
      for (size_t i = random() % 5; i > 0; --i)
        object[std::to_string(random() % 50)] = random_value(random, depth - 1);
      return object;
    }
  }
}

TEST(ParseJson, EqualsTheLibrarysOwnBuilder) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_value(random, 5).dump(random() % 2 ? -1 : 2);
    const Json parsed = parse_json(text, "x");
    EXPECT_EQ(parsed, Json::parse(text));
    EXPECT_EQ(parsed.dump(), Json::parse(text).dump());  // the order of keys as well
  }
}

TEST(ParseJson, KeepsTheOrderOfKeys) {
  EXPECT_EQ(parse_json(R"({"z":1,"a":{"y":[],"b":{}}})", "x").dump(),
            R"({"z":1,"a":{"y":[],"b":{}}})");
}

TEST(ParseJson, RefusesMalformedText) {
  for (const std::string text :
       {"",        " ",      "{",      "}",   "[1,]",  "{\"a\":1,}",   "{\"a\" 1}",
        "01",      "+1",     ".5",     "1.",  "nul",   "NaN",          "-Infinity",
        "\"\\x\"", "\"\n\"", "\"",     "1 2", "{} {}", "\"\xc0\xaf\"", "\"\\ud800\"",
        "1e999",   "-1e999", "// c\n1"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::bad_data, "x: malformed JSON at byte", [&] { parse_json(text, "x"); });
  }
  expect_error(ErrorCode::bad_data, "malformed JSON at byte 2: a zero byte",
               [] { parse_json(std::string("{}\0x", 4), "x"); });
  expect_error(ErrorCode::bad_data, "malformed JSON at byte 8",
               [] { parse_json("{\"a\":1,}", "x"); });
  expect_error(ErrorCode::bad_data, "key 'a' appears twice",
               [] { parse_json(R"({"b":[{"a":1,"\u0061":2}]})", "x"); });
}

TEST(ParseJson, KeepsItsLimits) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(64), "x"));
  expect_error(ErrorCode::bad_data, "nested deeper than 64", [&] { parse_json(nested(65), "x"); });
  expect_error(ErrorCode::bad_data, "nested deeper than 64",
               [&] { parse_json(std::string(1'000'000, '['), "x"); });
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_error(ErrorCode::bad_data, "nested deeper than 64", [&] { parse_json(objects, "x"); });
  expect_error(ErrorCode::resource, "at most 3 are read",
               [] { parse_json("[1]\n", "x", {.max_bytes = 3}); });
}

// A builder that looks up each key among those before it needs minutes for this.
TEST(ParseJson, TakesAnObjectOfManyKeys) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += "\"" + std::to_string(i) + "\":1,";
  text.back() = '}';
  EXPECT_EQ(parse_json(text, "x").size(), 200'000u);
}

}  // namespace
}  // namespace fovea
