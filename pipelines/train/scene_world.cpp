#include "pipelines/train/scene_world.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "kernels/scene/pose.h"
#include "pipelines/train/draw.h"
#include "pipelines/train/scene_caption.h"

namespace fovea::pipelines {
namespace {

using kernels::Camera;
using kernels::CameraMove;
using kernels::Motion;
using kernels::Scene;
using kernels::Shape;
using kernels::Solid;

constexpr double kCountWeights[kernels::kMaxSolids] = {0.35, 0.45, 0.2};
constexpr double kStaticWeight = 0.35;  // of the static camera beside others
// Half widths of solids; the more there are, the smaller, so that they find room.
constexpr double kBig[kernels::kMaxSolids] = {1.05, 0.97, 0.86};
constexpr double kSmall[kernels::kMaxSolids] = {0.68, 0.63, 0.56};

// Display values, in the order of `Colour`.
constexpr float kPalette[][3] = {
    {0.88f, 0.09f, 0.08f}, {0.08f, 0.62f, 0.16f}, {0.09f, 0.24f, 0.90f}, {0.97f, 0.86f, 0.08f},
    {0.98f, 0.50f, 0.04f}, {0.50f, 0.13f, 0.74f}, {0.05f, 0.80f, 0.86f}, {0.98f, 0.52f, 0.72f},
    {0.97f, 0.97f, 0.96f}, {0.07f, 0.07f, 0.08f},
};

int draw_count(int64_t max_objects, Draw& random) {
  double total = 0;
  for (int64_t i = 0; i < max_objects; ++i) total += kCountWeights[i];
  double left = random.unit() * total;
  for (int count = 1; count < max_objects; ++count) {
    left -= kCountWeights[count - 1];
    if (left < 0) return count;
  }
  return static_cast<int>(max_objects);
}

SolidWords draw_solid(const SceneOptions& options, Draw& random) {
  SolidWords solid;
  solid.shape = random.of(options.shapes);
  solid.colour = random.of(options.colours);
  std::vector<Motion> motions;
  for (const Motion motion : options.motions) {
    if (shows(solid.shape, motion)) motions.push_back(motion);
  }
  solid.motion = random.of(motions);
  solid.material = random.of(options.materials);
  solid.size = random.of(options.sizes);
  solid.name_material = random.chance(0.5);
  solid.name_size = random.chance(0.5);
  return solid;
}

/// Solids of which no two have the same shape and colour.
std::vector<SolidWords> draw_cast(const SceneOptions& options, Draw& random) {
  std::vector<SolidWords> cast(draw_count(options.max_objects, random));
  for (size_t i = 0; i < cast.size();) {
    cast[i] = draw_solid(options, random);
    const auto alike = [&](const SolidWords& other) {
      return other.shape == cast[i].shape && other.colour == cast[i].colour;
    };
    if (std::none_of(cast.begin(), cast.begin() + static_cast<int64_t>(i), alike)) ++i;
  }
  return cast;
}

Camera draw_camera(const SceneOptions& options, Draw& random) {
  const auto& moves = options.cameras;
  const bool has_static = std::find(moves.begin(), moves.end(), CameraMove::fixed) != moves.end();
  Camera camera;
  if (moves.size() > 1 && has_static && random.chance(kStaticWeight)) return camera;
  do {
    camera.move = random.of(moves);
  } while (moves.size() > 1 && camera.move == CameraMove::fixed);
  switch (camera.move) {
    case CameraMove::fixed:
      break;
    case CameraMove::orbit_left:
    case CameraMove::orbit_right:
      camera.travel = static_cast<float>(random.between(0.085, 0.11));
      break;
    case CameraMove::closer:
      camera.travel = static_cast<float>(random.between(2.5, 3.1));
      break;
    case CameraMove::rise:
      camera.travel = static_cast<float>(random.between(2.4, 3.0));
      break;
  }
  return camera;
}

/// How far a solid's motion goes, when there is room.
double draw_travel(const Solid& solid, int num_solids, Draw& random) {
  switch (solid.motion) {
    case Motion::still:
      return 0;
    case Motion::left:
    case Motion::right:
      return 2 * solid.size * (random.between(1.6, 2.0) - 0.15 * (num_solids - 1));
    case Motion::closer:
    case Motion::away:
      return random.between(3.2, 3.8);
    case Motion::bounce:
      return random.between(1.3, 1.6);
    case Motion::spin:
      return solid.shape == Shape::torus ? random.between(0.5, 0.6) : random.between(0.6, 0.75);
    case Motion::rise:
      return random.between(1.6, 2.0);
    case Motion::fall:
      return random.between(2.0, 2.4);
  }
  return 0;
}

Solid make_solid(const SolidWords& words, size_t count, Draw& random) {
  Solid solid;
  solid.shape = words.shape;
  solid.motion = words.motion;
  solid.shiny = words.material == Material::shiny;
  std::copy_n(kPalette[static_cast<size_t>(words.colour)], 3, solid.colour);
  const double size = (words.size == SolidSize::big ? kBig : kSmall)[count - 1];
  solid.size = static_cast<float>(size * random.between(0.96, 1.04));
  if (words.shape == Shape::cube) solid.yaw = static_cast<float>(random.between(0, 0.25));
  if (words.shape == Shape::torus) solid.yaw = static_cast<float>(random.between(-0.07, 0.07));
  return solid;
}

/// Puts the middle of the solid's path at (x, z).
void place(Solid& solid, double x, double z, double travel) {
  if (solid.motion == Motion::left) x += travel / 2;
  if (solid.motion == Motion::right) x -= travel / 2;
  if (solid.motion == Motion::closer) z -= travel / 2;
  if (solid.motion == Motion::away) z += travel / 2;
  solid.x = static_cast<float>(x);
  solid.z = static_cast<float>(z);
  solid.travel = static_cast<float>(travel);
}

double above(double value, double limit) { return std::max(0.0, value - limit); }

/// A solid in the picture: its centre, and about half its width.
struct Spot {
  double x, y, radius;
};

Spot spot_of(const kernels::ScenePose& pose, const kernels::SolidPose& solid) {
  const kernels::Projection at = kernels::project(pose, solid.centre);
  return {at.x, at.y, pose.focal * solid.size / std::max(at.depth, 0.1f)};
}

/// What is wrong with two solids at one moment: they touch, or one covers much of the other.
double crowding(const kernels::ScenePose& pose, int i, int j) {
  const kernels::SolidPose &a = pose.solids[i], &b = pose.solids[j];
  const double dx = a.centre.x - b.centre.x, dy = a.centre.y - b.centre.y,
               dz = a.centre.z - b.centre.z;
  const double touching = above(1.25 * (a.size + b.size), std::sqrt(dx * dx + dy * dy + dz * dz));
  const Spot p = spot_of(pose, a), q = spot_of(pose, b);
  const double distance = std::sqrt((p.x - q.x) * (p.x - q.x) + (p.y - q.y) * (p.y - q.y));
  return 3 * touching + above(0.9 * (p.radius + q.radius), distance);
}

/// What is wrong with a scene: 0 when its solids are in view, apart, and in a clear order from left
/// to right at the start. Stops counting once it is above `enough`.
double faults(const Scene& scene, double enough) {
  // Both ends first: most faults show there.
  constexpr double kMoments[] = {0, 1, 0.5, 0.25, 0.75, 0.125, 0.875, 0.375, 0.625};
  constexpr double kView = 0.96;
  double sum = 0;
  for (const double moment : kMoments) {
    if (sum > enough) break;
    const kernels::ScenePose pose = kernels::pose_at(scene, moment);
    for (int i = 0; i < scene.num_solids; ++i) {
      const Spot spot = spot_of(pose, pose.solids[i]);
      sum += 2 * above(std::abs(spot.x) + spot.radius, kView);
      sum += 2 * above(std::abs(spot.y) + spot.radius, kView);
      for (int j = 0; j < i; ++j) {
        sum += crowding(pose, i, j);
        const Spot other = spot_of(pose, pose.solids[j]);
        if (moment == 0)
          sum += above(0.8 * (spot.radius + other.radius), std::abs(spot.x - other.x));
      }
    }
  }
  return sum;
}

/// Where the middle of a solid's path is, and how far it goes.
struct Path {
  double x, z, travel;
};

/// Draws paths until the scene has no faults: first all anew, then one at a time on the best so
/// far, some of them shorter than wished. Keeps the best when none is free of faults.
Scene arrange(Scene scene, Draw& random) {
  constexpr int kTries = 400, kFreshTries = 60;
  constexpr double kShortest = 0.7, kShortestLate = 0.5;  // of the travel wished for
  constexpr double kNear = 0.6;
  const bool alone = scene.num_solids == 1;
  const double side = alone ? 1.3 : 2.4, back = alone ? -0.8 : -2.2, front = 1.5;
  const auto count = static_cast<size_t>(scene.num_solids);
  std::array<double, kernels::kMaxSolids> wish = {};
  for (size_t i = 0; i < count; ++i)
    wish[i] = draw_travel(scene.solids[i], scene.num_solids, random);

  std::array<Path, kernels::kMaxSolids> best = {};
  double least = std::numeric_limits<double>::infinity();
  for (int t = 0; t < kTries && least > 0; ++t) {
    auto paths = best;
    const size_t only = random.below(count);
    for (size_t i = 0; i < count; ++i) {
      if (t >= kFreshTries && i != only) continue;
      const bool fresh = t < kFreshTries || random.chance(0.3);
      const double shortest = t < kTries / 2 ? kShortest : kShortestLate;
      const double share = t < kFreshTries ? 1 : random.between(shortest, 1);
      const double x = random.between(-1, 1), z = random.between(0, 1);
      paths[i] = {fresh ? side * x : best[i].x + kNear * x,
                  fresh ? back + (front - back) * z
                        : std::clamp(best[i].z + kNear * (2 * z - 1), back, front),
                  wish[i] * share};
    }
    for (size_t i = 0; i < count; ++i)
      place(scene.solids[i], paths[i].x, paths[i].z, paths[i].travel);
    const double found = faults(scene, least);
    if (found < least) {
      least = found;
      best = paths;
    }
  }
  for (size_t i = 0; i < count; ++i) place(scene.solids[i], best[i].x, best[i].z, best[i].travel);
  return scene;
}

}  // namespace

SceneWorld::SceneWorld(SceneOptions options) : options_(std::move(options)) {}

SceneClip SceneWorld::clip(uint64_t seed, int64_t index) const {
  Draw random(seed, index);
  const std::vector<SolidWords> cast = draw_cast(options_, random);
  Scene scene;
  scene.num_solids = static_cast<int>(cast.size());
  scene.camera = draw_camera(options_, random);
  for (size_t i = 0; i < cast.size(); ++i)
    scene.solids[i] = make_solid(cast[i], cast.size(), random);
  scene = arrange(scene, random);

  const kernels::ScenePose start = kernels::pose_at(scene, 0);
  std::vector<size_t> order(cast.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return spot_of(start, start.solids[a]).x < spot_of(start, start.solids[b]).x;
  });
  SceneClip clip{scene, ""};
  std::vector<SolidWords> named;
  for (size_t i = 0; i < order.size(); ++i) {
    clip.scene.solids[i] = scene.solids[order[i]];
    named.push_back(cast[order[i]]);
  }
  clip.caption = caption_of(named, scene.camera.move, random);
  return clip;
}

std::vector<std::string> SceneWorld::words() const { return caption_words(); }

}  // namespace fovea::pipelines
