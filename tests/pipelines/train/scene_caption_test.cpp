#include "pipelines/train/scene_caption.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>

namespace fovea::pipelines {
namespace {

using kernels::CameraMove;
using kernels::Motion;
using kernels::Shape;

/// Words and punctuation marks of a text.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words(1);
  for (const char c : text) {
    if (c == ' ' || c == ',' || c == '.') {
      if (c != ' ') words.emplace_back(1, c);
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  std::erase(words, "");
  return words;
}

std::set<std::string> captions(std::vector<SolidWords> solids, CameraMove camera) {
  std::set<std::string> all;
  for (int64_t i = 0; i < 400; ++i) {
    Draw random(5, i);
    all.insert(caption_of(solids, camera, random));
  }
  return all;
}

const SolidWords kSphere{.shape = Shape::sphere, .colour = Colour::red, .motion = Motion::left};
const SolidWords kCube{.shape = Shape::cube, .colour = Colour::orange, .motion = Motion::spin};
const SolidWords kCone{.shape = Shape::cone,
                       .colour = Colour::green,
                       .motion = Motion::still,
                       .material = Material::shiny,
                       .size = SolidSize::small,
                       .name_material = true,
                       .name_size = true};

TEST(Caption, HasTheUsualWording) {
  const auto usual = [](std::vector<SolidWords> solids, CameraMove camera) {
    int count = 0;
    std::string wording;
    for (int64_t i = 0; i < 400; ++i) {
      Draw random(5, i);
      const bool is_usual = Draw(5, i).chance(0.6);
      const std::string caption = caption_of(solids, camera, random);
      if (!is_usual) continue;
      ++count;
      EXPECT_TRUE(wording.empty() || wording == caption) << caption;
      wording = caption;
    }
    EXPECT_NEAR(count, 240, 40);
    return wording;
  };
  EXPECT_EQ(usual({kSphere}, CameraMove::fixed), "a red sphere rolls left, static camera");
  EXPECT_EQ(usual({kSphere, kCube}, CameraMove::orbit_left),
            "a red sphere rolls left and an orange cube spins, camera orbits left");
  EXPECT_EQ(usual({kCone, kCube, kSphere}, CameraMove::rise),
            "a small shiny green cone stays still, an orange cube spins and a red sphere rolls "
            "left, camera rises");
}

TEST(Caption, VariesItsWording) {
  const auto some = captions({kSphere, kCube}, CameraMove::fixed);
  EXPECT_GT(some.size(), 80u);
  for (const char* caption : {"a red sphere rolls left and an orange cube spins, static camera"}) {
    EXPECT_TRUE(some.contains(caption)) << caption;
  }
  const auto any = [&](auto holds) { return std::any_of(some.begin(), some.end(), holds); };
  EXPECT_TRUE(any([](const std::string& c) { return c.ends_with('.'); }));
  EXPECT_TRUE(any([](const std::string& c) { return c.starts_with("the camera"); }));
  EXPECT_TRUE(any([](const std::string& c) { return c.find("camera") == c.npos; }));
  EXPECT_TRUE(any([](const std::string& c) { return c.find("one orange") != c.npos; }));
  EXPECT_TRUE(any([](const std::string& c) { return c.find("ball moves to the left") != c.npos; }));
  EXPECT_TRUE(any([](const std::string& c) { return c.find(" while ") != c.npos; }));
  EXPECT_FALSE(any([](const std::string& c) { return c.find("a orange") != c.npos; }));
  EXPECT_FALSE(any([](const std::string& c) { return c.find("an red") != c.npos; }));
}

TEST(Caption, OnlyAStaticCameraMayGoUnsaid) {
  for (const CameraMove camera :
       {CameraMove::orbit_left, CameraMove::orbit_right, CameraMove::closer, CameraMove::rise}) {
    for (const std::string& caption : captions({kCube}, camera))
      EXPECT_NE(caption.find("camera"), caption.npos) << caption;
  }
}

TEST(Caption, WordsAreAllThatItSays) {
  const std::vector<std::string> known = caption_words();
  EXPECT_TRUE(std::is_sorted(known.begin(), known.end()));
  EXPECT_EQ(std::adjacent_find(known.begin(), known.end()), known.end());
  const std::set<std::string> expected(known.begin(), known.end());
  std::set<std::string> said;
  int64_t index = 0;
  for (int shape = 0; shape < 5; ++shape) {
    for (int motion = 0; motion < 9; ++motion) {
      for (int colour = 0; colour < 10; ++colour) {
        for (int i = 0; i < 20; ++i) {
          Draw random(9, index++);
          const SolidWords solid{.shape = static_cast<Shape>(shape),
                                 .colour = static_cast<Colour>(colour),
                                 .motion = static_cast<Motion>(motion),
                                 .material = static_cast<Material>(i % 2),
                                 .size = static_cast<SolidSize>(i / 2 % 2),
                                 .name_material = true,
                                 .name_size = true};
          const std::vector<SolidWords> solids = {solid, kCube, kSphere};
          for (const std::string& word :
               words_of(caption_of(solids, static_cast<CameraMove>(i % 5), random)))
            said.insert(word);
        }
      }
    }
  }
  EXPECT_EQ(said, expected);
}

TEST(MiniPrompts, CoverTheWorldInItsUsualWording) {
  std::ifstream file(std::string(std::getenv("FOVEA_SOURCE_DIR")) + "/assets/prompts/mini.txt");
  const std::vector<std::string> known = caption_words();
  std::set<std::string> said, lines;
  std::vector<int> counts(4);
  for (std::string line; std::getline(file, line);) {
    EXPECT_TRUE(lines.insert(line).second) << line;
    const std::vector<std::string> words = words_of(line);
    for (const std::string& word : words) {
      EXPECT_TRUE(std::binary_search(known.begin(), known.end(), word)) << word << ": " << line;
      said.insert(word);
    }
    const auto articles = std::count_if(words.begin(), words.end(), [](const std::string& word) {
      return word == "a" || word == "an";
    });
    ASSERT_TRUE(articles >= 1 && articles <= 3) << line;
    ++counts[articles];
  }
  EXPECT_EQ(counts, (std::vector<int>{0, 16, 18, 6}));
  for (const char* word :
       {"sphere", "cube",   "cylinder", "cone", "torus",   "red",   "green", "blue",
        "yellow", "orange", "purple",   "cyan", "pink",    "white", "black", "rolls",
        "left",   "right",  "closer",   "away", "bounces", "spins", "rises", "falls",
        "stays",  "static", "orbits",   "big",  "small",   "shiny", "matte"}) {
    EXPECT_TRUE(said.contains(word)) << word;
  }
}

}  // namespace
}  // namespace fovea::pipelines
