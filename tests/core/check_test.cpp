#include "core/check.h"

#include <gtest/gtest.h>

namespace fovea {
namespace {

TEST(Printable, EscapesWhatCouldDriveATerminal) {
  EXPECT_EQ(printable("plain ütf8 漢"), "plain ütf8 漢");
  EXPECT_EQ(printable("a\x1b[31mb\n\x7f"), "a\\x1b[31mb\\n\\x7f");
  EXPECT_EQ(printable("\xff\xc3"), "\\xff\\xc3");
  EXPECT_EQ(printable("\xc2\x9b"), "\\xc2\\x9b");  // C1 control
  EXPECT_EQ(printable(std::string(1000, 'x'), 10), "xxxxxxxxxx...");
}

TEST(Error, WhatIsCodeFileReason) {
  const Error error(ErrorCode::bad_data, "a.json", "key 'x': expected integer");
  EXPECT_STREQ(error.what(), "3: a.json: key 'x': expected integer");
  EXPECT_EQ(error.exit_code(), 3);
}

TEST(Require, BuildsTheReasonOnlyWhenItThrows) {
  EXPECT_NO_THROW(require(true, ErrorCode::usage, "x", "y"));
  try {
    require(false, ErrorCode::usage, "--steps", "must be at least 1, got ", 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.reason(), "must be at least 1, got 0");
  }
}

}  // namespace
}  // namespace fovea
