#include "core/media/rational.h"

#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea {
namespace {

TEST(ParseFps, ReadsWholeNumbersFractionsAndDecimals) {
  EXPECT_EQ(parse_fps("24"), (Rational{24, 1}));
  EXPECT_EQ(parse_fps("24000/1001"), (Rational{24000, 1001}));
  EXPECT_EQ(parse_fps("50/2"), (Rational{25, 1}));
  EXPECT_EQ(parse_fps("12.5"), (Rational{25, 2}));
  EXPECT_EQ(parse_fps("24.0"), (Rational{24, 1}));
  EXPECT_EQ(parse_fps("0.5"), (Rational{1, 2}));
  EXPECT_EQ(parse_fps("1000"), (Rational{1000, 1}));
  EXPECT_EQ(parse_fps("0.01"), (Rational{1, 100}));
}

TEST(ParseFps, KnowsBroadcastRatesByTheirRoundedForm) {
  EXPECT_EQ(parse_fps("23.976"), (Rational{24000, 1001}));
  EXPECT_EQ(parse_fps("23.98"), (Rational{24000, 1001}));
  EXPECT_EQ(parse_fps("23.976024"), (Rational{24000, 1001}));
  EXPECT_EQ(parse_fps("29.97"), (Rational{30000, 1001}));
  EXPECT_EQ(parse_fps("47.952"), (Rational{48000, 1001}));
  EXPECT_EQ(parse_fps("59.94"), (Rational{60000, 1001}));
  EXPECT_EQ(parse_fps("119.88"), (Rational{120000, 1001}));
  // One more place that does not fit: taken as written.
  EXPECT_EQ(parse_fps("23.975"), (Rational{959, 40}));
  EXPECT_EQ(parse_fps("29.9"), (Rational{299, 10}));
}

TEST(ParseFps, RefusesEverythingElse) {
  for (const char* text : {"",
                           "0",
                           "-1",
                           "+24",
                           "24fps",
                           " 24",
                           "24 ",
                           "1e2",
                           "nan",
                           "inf",
                           "24/0",
                           "0/1",
                           "24/",
                           "/1",
                           "24/1/1",
                           ".5",
                           "24.",
                           "1.2.3",
                           "0.0",
                           "0.009",
                           "1001",
                           "99999999999999999999",
                           "1/101",
                           "23.9760239760",
                           "999999999/999999998",
                           "0x18",
                           "24,5"}) {
    try {
      parse_fps(text);
      ADD_FAILURE() << "accepted '" << text << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::usage) << text;
      EXPECT_EQ(error.where(), "--fps");
    }
  }
}

TEST(Rational, PrintsAndReduces) {
  EXPECT_EQ((Rational{24, 1}).text(), "24");
  EXPECT_EQ((Rational{24000, 1001}).text(), "24000/1001");
  EXPECT_EQ(reduced(600, 25), (Rational{24, 1}));
  EXPECT_DOUBLE_EQ((Rational{1, 4}).value(), 0.25);
}

}  // namespace
}  // namespace fovea
