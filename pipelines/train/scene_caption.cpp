#include "pipelines/train/scene_caption.h"

#include <set>
#include <string_view>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

using kernels::CameraMove;
using kernels::Motion;
using kernels::Shape;

/// Ways to say one thing, the usual one first.
using Phrases = std::vector<std::string_view>;

// In the order of the enumerations.
const std::vector<Phrases> kShapes = {{"sphere", "ball"},
                                      {"cube", "box", "block"},
                                      {"cylinder", "can"},
                                      {"cone"},
                                      {"torus", "donut", "ring"}};
const std::vector<Phrases> kColours = {{"red"},
                                       {"green"},
                                       {"blue"},
                                       {"yellow"},
                                       {"orange"},
                                       {"purple", "violet"},
                                       {"cyan", "turquoise"},
                                       {"pink"},
                                       {"white"},
                                       {"black"}};
const std::vector<Phrases> kMaterials = {{"matte", "dull"}, {"shiny", "glossy"}};
const std::vector<Phrases> kSizes = {{"small", "little", "tiny"}, {"big", "large"}};
const std::vector<Phrases> kMotions = {
    {"stays still", "stands still", "rests", "does not move", "rests on the floor"},
    {"moves left", "slides left", "glides left", "moves to the left", "slides to the left"},
    {"moves right", "slides right", "glides right", "moves to the right", "slides to the right"},
    {"moves closer", "comes closer", "approaches", "slides closer", "moves toward the camera"},
    {"moves away", "goes away", "slides away", "moves back", "moves away from the camera"},
    {"bounces", "jumps", "hops", "bounces up and down", "jumps up and down"},
    {"spins", "rotates", "turns", "spins around", "turns around"},
    {"rises", "floats up", "moves up", "goes up", "rises into the air"},
    {"falls", "drops", "falls down", "drops down", "falls to the floor", "drops onto the floor"},
};
// A sphere goes along the floor in its own way.
const Phrases kRollsLeft = {"rolls left", "moves left", "rolls to the left", "moves to the left"};
const Phrases kRollsRight = {"rolls right", "moves right", "rolls to the right",
                             "moves to the right"};
const std::vector<Phrases> kCameras = {
    {"static camera", "fixed camera", "the camera stays still", "the camera does not move"},
    {"camera orbits left", "the camera orbits left", "the camera orbits to the left",
     "the camera circles left"},
    {"camera orbits right", "the camera orbits right", "the camera orbits to the right",
     "the camera circles right"},
    {"camera moves closer", "the camera moves closer", "camera zooms in", "the camera zooms in",
     "the camera comes closer"},
    {"camera rises", "the camera rises", "camera moves up", "the camera moves up",
     "the camera goes up"},
};
const Phrases kArticles = {"a", "one"};
const Phrases kJoins = {" and ", " while "};
constexpr double kUsual = 0.6;

template <typename T>
const Phrases& phrases(const std::vector<Phrases>& table, T value) {
  return table.at(static_cast<size_t>(value));
}

const Phrases& motion_phrases(Shape shape, Motion motion) {
  if (shape == Shape::sphere && motion == Motion::left) return kRollsLeft;
  if (shape == Shape::sphere && motion == Motion::right) return kRollsRight;
  return phrases(kMotions, motion);
}

class Writer {
 public:
  explicit Writer(Draw& random) : random_(random), usual_(random.chance(kUsual)) {}

  std::string sentence(std::span<const SolidWords> solids, CameraMove camera) {
    const std::string scene = objects(solids);
    const std::string view(pick(phrases(kCameras, camera)));
    if (usual_) return scene + ", " + view;
    const bool silent = camera == CameraMove::fixed && random_.chance(0.5);
    const bool view_first = random_.chance(0.2);
    const std::string end = random_.chance(0.3) ? "." : "";
    if (silent) return scene + end;
    return (view_first ? view + ", " + scene : scene + ", " + view) + end;
  }

 private:
  std::string_view pick(const Phrases& choices) {
    return usual_ ? choices.front() : random_.of(choices);
  }

  std::string object(const SolidWords& solid) {
    std::string words;
    if (solid.name_size) words += str(pick(phrases(kSizes, solid.size)), " ");
    if (solid.name_material) words += str(pick(phrases(kMaterials, solid.material)), " ");
    words += str(pick(phrases(kColours, solid.colour)), " ");
    words += pick(phrases(kShapes, solid.shape));
    std::string article(usual_ || random_.chance(0.75) ? kArticles[0] : kArticles[1]);
    if (article == "a" && words.front() == 'o') article = "an";
    return str(article, " ", words, " ", pick(motion_phrases(solid.shape, solid.motion)));
  }

  std::string objects(std::span<const SolidWords> solids) {
    std::string list = object(solids[0]);
    for (size_t i = 1; i < solids.size(); ++i) {
      list += i + 1 < solids.size() ? ", " : pick(kJoins);
      list += object(solids[i]);
    }
    return list;
  }

  Draw& random_;
  bool usual_;
};

void add_words(const Phrases& choices, std::set<std::string>& words) {
  for (const std::string_view phrase : choices) {
    std::istringstream stream{std::string(phrase)};
    for (std::string word; stream >> word;) words.insert(word);
  }
}

}  // namespace

std::string caption_of(std::span<const SolidWords> solids, CameraMove camera, Draw& random) {
  FOVEA_ASSERT(!solids.empty());
  return Writer(random).sentence(solids, camera);
}

std::vector<std::string> caption_words() {
  std::set<std::string> words = {",", ".", "an"};
  for (const auto* table : {&kShapes, &kColours, &kMaterials, &kSizes, &kMotions, &kCameras}) {
    for (const Phrases& choices : *table) add_words(choices, words);
  }
  for (const Phrases* choices : {&kRollsLeft, &kRollsRight, &kArticles, &kJoins})
    add_words(*choices, words);
  return {words.begin(), words.end()};
}

}  // namespace fovea::pipelines
