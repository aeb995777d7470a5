#include "pipelines/train/scene_options.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

using kernels::CameraMove;
using kernels::Motion;
using kernels::Shape;

template <typename T>
using Names = std::vector<std::pair<std::string_view, T>>;

const Names<Shape> kShapes = {{"sphere", Shape::sphere},
                              {"cube", Shape::cube},
                              {"cylinder", Shape::cylinder},
                              {"cone", Shape::cone},
                              {"torus", Shape::torus}};
const Names<Colour> kColours = {{"red", Colour::red},       {"green", Colour::green},
                                {"blue", Colour::blue},     {"yellow", Colour::yellow},
                                {"orange", Colour::orange}, {"purple", Colour::purple},
                                {"cyan", Colour::cyan},     {"pink", Colour::pink},
                                {"white", Colour::white},   {"black", Colour::black}};
const Names<Motion> kMotions = {
    {"still", Motion::still},   {"left", Motion::left}, {"right", Motion::right},
    {"closer", Motion::closer}, {"away", Motion::away}, {"bounce", Motion::bounce},
    {"spin", Motion::spin},     {"rise", Motion::rise}, {"fall", Motion::fall}};
const Names<CameraMove> kCameras = {{"static", CameraMove::fixed},
                                    {"orbit_left", CameraMove::orbit_left},
                                    {"orbit_right", CameraMove::orbit_right},
                                    {"closer", CameraMove::closer},
                                    {"rise", CameraMove::rise}};
const Names<Material> kMaterials = {{"matte", Material::matte}, {"shiny", Material::shiny}};
const Names<SolidSize> kSizes = {{"small", SolidSize::small}, {"big", SolidSize::big}};

template <typename T>
std::vector<T> all(const Names<T>& names) {
  std::vector<T> values;
  for (const auto& [name, value] : names) values.push_back(value);
  return values;
}

template <typename T>
std::vector<T> read_list(Config& config, const char* key, const Names<T>& names) {
  config.ignore({key});
  if (!config.has(key)) return all(names);
  const Json& list = config.json().at(key);
  if (!list.is_array() || list.empty()) config.refuse(key, "expected an array of names, not empty");
  std::vector<T> values;
  for (const Json& item : list) {
    const std::string name = item.is_string() ? item.get<std::string>() : "";
    const auto found = std::find_if(names.begin(), names.end(),
                                    [&](const auto& known) { return known.first == name; });
    if (found == names.end()) {
      std::string expected;
      for (const auto& known : names) expected += str(expected.empty() ? "" : ", ", known.first);
      config.refuse(key, str("expected names out of ", expected));
    }
    if (std::find(values.begin(), values.end(), found->second) != values.end())
      config.refuse(key, str("'", name, "' is there twice"));
    values.push_back(found->second);
  }
  return values;
}

}  // namespace

bool shows(Shape shape, Motion motion) {
  return motion != Motion::spin || shape == Shape::cube || shape == Shape::torus;
}

SceneOptions::SceneOptions()
    : shapes(all(kShapes)),
      colours(all(kColours)),
      motions(all(kMotions)),
      cameras(all(kCameras)),
      materials(all(kMaterials)),
      sizes(all(kSizes)) {}

SceneOptions SceneOptions::read(Config& config) {
  SceneOptions options;
  options.shapes = read_list(config, "shapes", kShapes);
  options.colours = read_list(config, "colours", kColours);
  options.motions = read_list(config, "motions", kMotions);
  options.cameras = read_list(config, "cameras", kCameras);
  options.materials = read_list(config, "materials", kMaterials);
  options.sizes = read_list(config, "sizes", kSizes);
  const auto pairs = static_cast<int64_t>(options.shapes.size() * options.colours.size());
  options.max_objects = config.integer("max_objects", std::min<int64_t>(3, pairs), 1, 3);
  if (options.max_objects > pairs) {
    config.refuse("max_objects",
                  str("expected at most ", pairs, ", the number of pairs of shape and colour"));
  }
  for (const Shape shape : options.shapes) {
    if (std::none_of(options.motions.begin(), options.motions.end(),
                     [&](Motion motion) { return shows(shape, motion); }))
      config.refuse("motions", "only cubes and tori are seen to spin; other shapes need a motion");
  }
  return options;
}

}  // namespace fovea::pipelines
