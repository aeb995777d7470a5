#include "core/config.h"

#include <cstdint>
#include <functional>

#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

Config config(const std::string& text) { return {parse_json(text, "config.json"), "config.json"}; }

void refused(const std::string& reason, const std::function<void()>& run) {
  expect_error(ErrorCode::bad_data, reason, run);
}

TEST(Config, ReadsTypedValues) {
  Config c = config(R"({"i":3,"n":-2,"f":1.5,"whole":2,"b":true,"s":"x",)"
                    R"("is":[1,2,2],"fs":[1,0.5],"bs":[true,false]})");
  EXPECT_EQ(c.integer("i", 9, 0, 3), 3);
  EXPECT_EQ(c.integer("n", 9, -2, 3), -2);
  EXPECT_EQ(c.number("f", 0), 1.5);
  EXPECT_EQ(c.number("whole", 0), 2.0);
  EXPECT_TRUE(c.boolean("b", false));
  EXPECT_EQ(c.text("s", ""), "x");
  EXPECT_EQ(c.optional_integer("i", 0, 3), 3);
  EXPECT_EQ(c.integers("is", {}, 1, 2), (std::vector<int64_t>{1, 2, 2}));
  EXPECT_EQ(c.numbers("fs", {}), (std::vector<double>{1, 0.5}));
  EXPECT_EQ(c.booleans("bs", {}), (std::vector<bool>{true, false}));
  Report strict(true);
  EXPECT_NO_THROW(c.finish(strict));
}

TEST(Config, AbsentAndNullGiveTheDefault) {
  Config c = config(R"({"null":null})");
  for (const char* key : {"null", "absent"}) {
    EXPECT_FALSE(c.has(key));
    EXPECT_EQ(c.integer(key, 7, 0, 9), 7);
    EXPECT_EQ(c.number(key, 0.5), 0.5);
    EXPECT_TRUE(c.boolean(key, true));
    EXPECT_EQ(c.text(key, "t"), "t");
    EXPECT_EQ(c.optional_integer(key, 0, 9), std::nullopt);
    EXPECT_EQ(c.integers(key, {1}, 0, 9), std::vector<int64_t>{1});
    EXPECT_EQ(c.numbers(key, {1}), std::vector<double>{1});
    EXPECT_EQ(c.booleans(key, {true}), std::vector<bool>{true});
  }
}

TEST(Config, RefusesWrongTypesAndRangesNamingTheKey) {
  Config c = config(R"({"s":"text","i":10,"f":1.5,"b":true,"a":[1,"x"],)"
                    R"("huge":18446744073709551615,"o":{"k":1}})");
  refused("config.json: key 'i': expected an integer from 0 to 9, got 10",
          [&] { c.integer("i", 0, 0, 9); });
  refused("key 'i': expected an integer from 11 to 12, got 10",
          [&] { c.optional_integer("i", 11, 12); });
  refused("key 'huge'", [&] { c.integer("huge", 0, INT64_MIN, INT64_MAX); });
  refused("key 'f': expected an integer", [&] { c.integer("f", 0, 0, 9); });
  refused("key 'b': expected an integer", [&] { c.integer("b", 0, 0, 9); });
  refused("key 's': expected an integer from 0 to 9, got \"text\"",
          [&] { c.integer("s", 0, 0, 9); });
  refused("key 's': expected a number", [&] { c.number("s", 0); });
  refused("key 'b': expected a number, got true", [&] { c.number("b", 0); });
  refused("key 'i': expected true or false, got 10", [&] { c.boolean("i", false); });
  refused("key 'o': expected a string, got {\"k\":1}", [&] { c.text("o", ""); });
  refused("key 'i': expected an array of integers, got 10", [&] { c.integers("i", {}, 0, 99); });
  refused("key 'a': expected an integer from 0 to 99, got [1,\"x\"]",
          [&] { c.integers("a", {}, 0, 99); });
  refused("key 'a': expected an array of numbers", [&] { c.numbers("a", {}); });
  refused("key 'f': expected an array of numbers, got 1.5", [&] { c.numbers("f", {}); });
  refused("key 'a': expected an array of true and false", [&] { c.booleans("a", {}); });
  refused("key 'b': expected an array of true and false, got true", [&] { c.booleans("b", {}); });
}

TEST(Config, ReportsUnknownKeysInOneLine) {
  Config c = config(R"({"_class_name":"X","known":1,"b\u001b":1,"a":2,"ignored":3})");
  c.integer("known", 0, 0, 9);
  c.ignore({"ignored"});
  Report report;
  c.finish(report);
  ASSERT_EQ(report.warnings().size(), 1u);
  EXPECT_EQ(report.warnings()[0], "config.json: ignored unknown keys 'b\\x1b', 'a'");
  Report strict(true);
  refused("ignored unknown keys", [&] { c.finish(strict); });
}

TEST(Config, RefusesUnknownOptionsWithAListOfTheKnown) {
  Config c = config(R"({"_a":1,"known":1,"b":1})");
  c.integer("known", 0, 0, 9);
  c.number("also", 0);
  refused("unknown options '_a', 'b'; known: also, known", [&] { c.refuse_unknown(); });
  Config fine = config(R"({"known":1})");
  fine.integer("known", 0, 0, 9);
  EXPECT_NO_THROW(fine.refuse_unknown());
}

TEST(Config, RefusesFilesThatAreNoObject) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "config.json";
  refused("no such file", [&] { Config::read(path); });
  for (const char* text : {"[1]", "3", "null", "\"x\""}) {
    write_bytes(path, text);
    refused("expected a JSON object", [&] { Config::read(path); });
  }
  for (const char* text : {"", "{", R"({"eps":NaN})", R"({"eps":Infinity})", R"({"eps":-Infinity})",
                           R"({"eps":1e999})", "{\"eps\":\"\xff\"}", "{'eps':1}"}) {
    write_bytes(path, text);
    refused("malformed JSON at byte", [&] { Config::read(path); });
  }
  write_bytes(path, R"({"eps":1,"eps":2})");
  refused("key 'eps' appears twice", [&] { Config::read(path); });
}

}  // namespace
}  // namespace fovea
