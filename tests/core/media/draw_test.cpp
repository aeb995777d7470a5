#include "core/media/draw.h"

#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

constexpr Color kWhite = {255, 255, 255}, kBlack = {0, 0, 0};

// The box around all that is not white.
Box ink(const Picture& picture) {
  int left = picture.width, right = -1, top = picture.height, bottom = -1;
  for (int y = 0; y < picture.height; ++y) {
    for (int x = 0; x < picture.width; ++x) {
      if (picture.rgb[(static_cast<size_t>(y) * picture.width + x) * 3] == 255) continue;
      left = std::min(left, x), right = std::max(right, x);
      top = std::min(top, y), bottom = std::max(bottom, y);
    }
  }
  return {left, top, right - left + 1, bottom - top + 1};
}

TEST(Canvas, EveryCharacterIsDrawnWhereItsWidthSays) {
  for (const double size : {7.0, 9.0, 24.0}) {
    for (char c = '!'; c <= '~'; ++c) {
      SCOPED_TRACE(c);
      Canvas canvas(80, 80, kWhite);
      const TextStyle style{.size = size, .color = kBlack};
      canvas.text(20, 40, std::string(1, c), style);
      const Box box = ink(canvas.picture());
      const double edge = 0.065 * size * 1.3 + 1.5;  // half a stroke, rounded outwards
      EXPECT_GT(box.width, 0);
      EXPECT_GE(box.x, 20 - edge);
      EXPECT_LE(box.x + box.width, 20 + text_width(std::string(1, c), style) + edge);
      EXPECT_GE(box.y, 40 - size - edge);
      EXPECT_LE(box.y + box.height, 40 + size * 3 / 8 + edge);
    }
  }
}

TEST(Canvas, CharactersDiffer) {
  std::vector<std::vector<uint8_t>> seen;
  for (char c = ' '; c <= '~'; ++c) {
    Canvas canvas(30, 40, kWhite);
    canvas.text(5, 25, std::string(1, c), {.size = 16, .color = kBlack});
    for (const auto& other : seen) EXPECT_NE(canvas.picture().rgb, other) << c;
    seen.push_back(canvas.picture().rgb);
  }
}

TEST(Canvas, WhatIsNoAsciiIsOneBox) {
  const TextStyle style{.size = 8};
  EXPECT_DOUBLE_EQ(text_width("\xe2\x99\xa5", style), 5);  // a heart of three bytes
  EXPECT_DOUBLE_EQ(text_width("\xff", style), 5);
  EXPECT_DOUBLE_EQ(text_width("aa", style), 5 + 2 + 5);
  EXPECT_DOUBLE_EQ(text_width("", style), 0);
}

TEST(Canvas, TextIsCutToItsRoom) {
  Canvas canvas(200, 30, kWhite);
  canvas.text_within(10, 20, 60, "a text that is far too long", {.size = 8, .color = kBlack});
  EXPECT_LE(ink(canvas.picture()).x + ink(canvas.picture()).width, 72);
  EXPECT_GT(ink(canvas.picture()).width, 45);
}

TEST(Canvas, DrawsInsideOnly) {
  Canvas canvas(4, 3, kWhite);
  canvas.fill({-5, 1, 7, 100}, kBlack);
  Picture expected = make_picture(4, 3);
  for (int y = 0; y < 3; ++y) {
    for (int x = 0; x < 4; ++x) {
      const bool black = y >= 1 && x < 2;
      for (int c = 0; c < 3; ++c) expected.rgb[(y * 4 + x) * 3 + c] = black ? 0 : 255;
    }
  }
  EXPECT_EQ(canvas.picture().rgb, expected.rgb);
  Picture red{3, 3, std::vector<uint8_t>(27, 9)};
  canvas.paste(red, -2, -2);  // one pixel of it is inside
  canvas.paste(red, 3, 2);
  canvas.paste(red, 50, 50);
  for (int c = 0; c < 3; ++c) expected.rgb[c] = expected.rgb[(2 * 4 + 3) * 3 + c] = 9;
  EXPECT_EQ(canvas.picture().rgb, expected.rgb);
  canvas.text(-100, 1000, "away", {.size = 9, .color = kBlack});
  EXPECT_EQ(canvas.picture().rgb, expected.rgb);
}

TEST(Canvas, RefusesSizes) {
  test::expect_error(ErrorCode::usage, "drawing", [] { Canvas(0, 3, kWhite); });
  test::expect_error(ErrorCode::resource, "drawing", [] { Canvas(20000, 3, kWhite); });
}

}  // namespace
}  // namespace fovea
