#include "pipelines/train/scene_options.h"

#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using kernels::CameraMove;
using kernels::Motion;
using kernels::Shape;
using test::expect_error;

SceneOptions read(const std::string& text) {
  Config config(parse_json(text, "data.json"), "data.json");
  SceneOptions options = SceneOptions::read(config);
  Report strict(true);
  config.finish(strict);  // all keys are known
  return options;
}

void refused(const std::string& reason, const std::string& text) {
  expect_error(ErrorCode::bad_data, reason, [&] { read(text); });
}

TEST(SceneOptions, DefaultsToEverything) {
  for (const SceneOptions& options : {SceneOptions(), read("{}"), read(R"({"shapes":null})")}) {
    EXPECT_EQ(options.shapes.size(), 5u);
    EXPECT_EQ(options.colours.size(), 10u);
    EXPECT_EQ(options.motions.size(), 9u);
    EXPECT_EQ(options.cameras.size(), 5u);
    EXPECT_EQ(options.materials.size(), 2u);
    EXPECT_EQ(options.sizes.size(), 2u);
    EXPECT_EQ(options.max_objects, 3);
  }
}

TEST(SceneOptions, ReadsEveryKey) {
  const SceneOptions options =
      read(R"({"shapes":["torus","cube"],"colours":["black"],"motions":["fall","spin"],)"
           R"("cameras":["static","rise"],"materials":["shiny"],"sizes":["small"],)"
           R"("max_objects":2})");
  EXPECT_EQ(options.shapes, (std::vector<Shape>{Shape::torus, Shape::cube}));
  EXPECT_EQ(options.colours, (std::vector<Colour>{Colour::black}));
  EXPECT_EQ(options.motions, (std::vector<Motion>{Motion::fall, Motion::spin}));
  EXPECT_EQ(options.cameras, (std::vector<CameraMove>{CameraMove::fixed, CameraMove::rise}));
  EXPECT_EQ(options.materials, (std::vector<Material>{Material::shiny}));
  EXPECT_EQ(options.sizes, (std::vector<SolidSize>{SolidSize::small}));
  EXPECT_EQ(options.max_objects, 2);
}

TEST(SceneOptions, RefusesBadListsByName) {
  for (const std::string key : {"shapes", "colours", "motions", "cameras", "materials", "sizes"}) {
    refused("data.json: key '" + key + "': expected names out of", "{\"" + key + "\":[\"x\"]}");
    refused("key '" + key + "': expected names out of", "{\"" + key + "\":[3]}");
    refused("key '" + key + "': expected an array of names, not empty", "{\"" + key + "\":[]}");
    refused("key '" + key + "': expected an array of names", "{\"" + key + "\":\"cube\"}");
  }
  refused("key 'shapes': expected names out of sphere, cube, cylinder, cone, torus, got [\"ball\"]",
          R"({"shapes":["ball"]})");
  refused("key 'colours': 'red' is there twice", R"({"colours":["red","blue","red"]})");
}

TEST(SceneOptions, RefusesCountsOutOfRange) {
  refused("key 'max_objects': expected an integer from 1 to 3, got 0", R"({"max_objects":0})");
  refused("key 'max_objects': expected an integer from 1 to 3, got 4", R"({"max_objects":4})");
  refused("key 'max_objects': expected an integer", R"({"max_objects":"two"})");
  // No two solids of a clip are alike.
  refused("key 'max_objects': expected at most 2, the number of pairs of shape and colour, got 3",
          R"({"shapes":["cube"],"colours":["red","blue"],"max_objects":3})");
  EXPECT_EQ(read(R"({"shapes":["cube"],"colours":["red","blue"]})").max_objects, 2);
}

TEST(SceneOptions, RefusesShapesWithoutAMotion) {
  refused("key 'motions': only cubes and tori are seen to spin", R"({"motions":["spin"]})");
  refused("key 'motions'", R"({"motions":["spin"],"shapes":["cube","cone"]})");
  EXPECT_NO_THROW(read(R"({"motions":["spin"],"shapes":["cube","torus"]})"));
  EXPECT_NO_THROW(read(R"({"motions":["spin","still"]})"));
}

}  // namespace
}  // namespace fovea::pipelines
