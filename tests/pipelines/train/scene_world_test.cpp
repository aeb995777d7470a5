#include "pipelines/train/scene_world.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "kernels/scene/pose.h"

namespace fovea::pipelines {
namespace {

using kernels::CameraMove;
using kernels::Motion;
using kernels::Scene;
using kernels::Shape;
using kernels::Solid;

TEST(SceneWorld, ClipsAreKnown) {
  const SceneWorld world;
  struct Known {
    int64_t index;
    const char* caption;
    float x, z;  // of the last solid, half way through the clip
  };
  const Known clips[] = {
      {0, "a black torus falls and a small purple cylinder rises, camera moves closer", 1.30595112f,
       -1.82566345f},
      {1, "a big cyan torus stays still, camera rises", -1.10838771f, 1.08909857f},
      {2,
       "a small black ring falls, a matte turquoise sphere rolls to the left while a little "
       "glossy yellow donut falls down, the camera circles left",
       2.21038437f, -1.03024125f},
      {12345678,
       "a small shiny green cylinder moves closer and a small shiny blue cylinder "
       "rises, static camera",
       1.43121684f, 1.28288889f},
  };
  for (const Known& known : clips) {
    const SceneClip clip = world.clip(1, known.index);
    EXPECT_EQ(clip.caption, known.caption);
    const kernels::ScenePose pose = kernels::pose_at(clip.scene, 0.5);
    const kernels::Vec3 centre = pose.solids[pose.num_solids - 1].centre;
    EXPECT_EQ(centre.x, known.x) << known.index;
    EXPECT_EQ(centre.z, known.z) << known.index;
  }
}

TEST(SceneWorld, ClipsDependOnSeedAndIndexAlone) {
  const SceneWorld world, other;
  const SceneClip first = world.clip(4, 7);
  world.clip(4, 8);
  EXPECT_EQ(other.clip(4, 7).caption, first.caption);
  EXPECT_EQ(other.clip(4, 7).scene.solids[0].x, first.scene.solids[0].x);
  std::set<float> places;
  for (int64_t i = 0; i < 50; ++i) {
    places.insert(world.clip(4, i).scene.solids[0].x);
    places.insert(world.clip(5, i).scene.solids[0].x);
  }
  EXPECT_EQ(places.size(), 100u);
}

struct Spot {
  double x, y, radius;
};

Spot spot_of(const kernels::ScenePose& pose, int solid) {
  const kernels::Projection at = kernels::project(pose, pose.solids[solid].centre);
  return {at.x, at.y, pose.focal * pose.solids[solid].size / at.depth};
}

TEST(SceneWorld, SolidsStayInViewAndApart) {
  const SceneWorld world;
  int cut = 0;  // of clips: a solid leaves the picture by a little
  for (int64_t i = 0; i < 200; ++i) {
    const Scene scene = world.clip(21, i).scene;
    double beyond = 0;
    for (const double time : {0.0, 0.3, 0.5, 0.8, 1.0}) {
      const kernels::ScenePose pose = kernels::pose_at(scene, time);
      for (int a = 0; a < scene.num_solids; ++a) {
        const Spot spot = spot_of(pose, a);
        EXPECT_GT(spot.radius, 0.1) << i;
        EXPECT_LT(std::abs(spot.x) + 0.5 * spot.radius, 1) << i;
        EXPECT_LT(std::abs(spot.y) + 0.5 * spot.radius, 1) << i;
        beyond = std::max(
            {beyond, std::abs(spot.x) + spot.radius - 1, std::abs(spot.y) + spot.radius - 1});
        for (int b = 0; b < a; ++b) {
          const auto &p = pose.solids[a].centre, &q = pose.solids[b].centre;
          const double apart = std::hypot(p.x - q.x, p.y - q.y, p.z - q.z);
          EXPECT_GT(apart, pose.solids[a].size + pose.solids[b].size) << i;
        }
      }
    }
    cut += beyond > 0.01;
  }
  EXPECT_LE(cut, 6);
}

TEST(SceneWorld, NamesSolidsFromLeftToRight) {
  const char* const shapes[] = {"sphere", "cube", "cylinder", "cone", "torus"};
  const SceneWorld world;
  int checked = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const SceneClip clip = world.clip(22, i);
    const kernels::ScenePose start = kernels::pose_at(clip.scene, 0);
    size_t named = 0;
    for (int a = 0; a < clip.scene.num_solids; ++a) {
      if (a > 0) {
        EXPECT_GT(spot_of(start, a).x, spot_of(start, a - 1).x) << i;
      }
      const std::string shape = shapes[static_cast<size_t>(clip.scene.solids[a].shape)];
      const size_t found = clip.caption.find(" " + shape + " ", named);
      if (found == std::string::npos) break;  // said with a synonym
      named = found + 1;
      ++checked;
    }
  }
  EXPECT_GT(checked, 220);
}

TEST(SceneWorld, NoTwoSolidsOfAClipAreAlike) {
  SceneOptions options;
  options.shapes = {Shape::cube, Shape::torus};
  options.colours = {Colour::red, Colour::blue};
  const SceneWorld world(options);
  for (int64_t i = 0; i < 200; ++i) {
    const Scene scene = world.clip(23, i).scene;
    for (int a = 0; a < scene.num_solids; ++a) {
      for (int b = 0; b < a; ++b) {
        const Solid &p = scene.solids[a], &q = scene.solids[b];
        EXPECT_FALSE(p.shape == q.shape && p.colour[0] == q.colour[0]) << i;
      }
    }
  }
}

TEST(SceneWorld, DrawsAllThereIs) {
  const SceneWorld world;
  std::map<int, int> counts, shapes, motions, cameras, shiny, big;
  std::map<float, int> colours;
  int solids = 0, spins = 0;
  constexpr int kClips = 2000;
  for (int64_t i = 0; i < kClips; ++i) {
    const Scene scene = world.clip(24, i).scene;
    ++counts[scene.num_solids];
    ++cameras[static_cast<int>(scene.camera.move)];
    for (int a = 0; a < scene.num_solids; ++a, ++solids) {
      const Solid& solid = scene.solids[a];
      ++shapes[static_cast<int>(solid.shape)];
      ++motions[static_cast<int>(solid.motion)];
      ++shiny[solid.shiny];
      ++big[solid.size > 0.75f];
      ++colours[solid.colour[0] * 100 + solid.colour[1] * 10 + solid.colour[2]];
      if (solid.motion == Motion::spin) {
        ++spins;
        EXPECT_TRUE(solid.shape == Shape::cube || solid.shape == Shape::torus);
      }
    }
  }
  const auto share = [](int count, int total) { return static_cast<double>(count) / total; };
  EXPECT_NEAR(share(counts[1], kClips), 0.35, 0.04);
  EXPECT_NEAR(share(counts[2], kClips), 0.45, 0.04);
  EXPECT_NEAR(share(counts[3], kClips), 0.20, 0.04);
  for (int shape = 0; shape < 5; ++shape) EXPECT_NEAR(share(shapes[shape], solids), 0.2, 0.03);
  ASSERT_EQ(motions.size(), 9u);
  for (const auto& [motion, count] : motions) EXPECT_GT(share(count, solids), 0.03) << motion;
  ASSERT_EQ(colours.size(), 10u);
  for (const auto& [colour, count] : colours) EXPECT_NEAR(share(count, solids), 0.1, 0.025);
  ASSERT_EQ(cameras.size(), 5u);
  for (const auto& [camera, count] : cameras) EXPECT_GT(share(count, kClips), 0.12) << camera;
  EXPECT_NEAR(share(shiny[1], solids), 0.5, 0.04);
  EXPECT_NEAR(share(big[1], solids), 0.5, 0.04);
  EXPECT_GT(spins, 0);
}

TEST(SceneWorld, MotionsAreClearlySeen) {
  // In a picture of 128 x 128, measured from first to last frame or to the top of a jump.
  const double pixels = 64;
  for (const Motion motion : {Motion::left, Motion::right, Motion::closer, Motion::away,
                              Motion::bounce, Motion::rise, Motion::fall}) {
    SceneOptions options;
    options.motions = {motion};
    options.cameras = {CameraMove::fixed};
    const SceneWorld world(options);
    for (int64_t i = 0; i < 60; ++i) {
      const Scene scene = world.clip(25, i).scene;
      const kernels::ScenePose start = kernels::pose_at(scene, 0);
      const kernels::ScenePose end = kernels::pose_at(scene, motion == Motion::bounce ? 0.25 : 1.0);
      for (int a = 0; a < scene.num_solids; ++a) {
        const Spot from = spot_of(start, a), to = spot_of(end, a);
        const double growth = to.radius / from.radius;
        switch (motion) {
          case Motion::left:
            EXPECT_LT((to.x - from.x) * pixels, -16) << i;
            break;
          case Motion::right:
            EXPECT_GT((to.x - from.x) * pixels, 16) << i;
            break;
          case Motion::closer:
            EXPECT_GT(growth, 1.18) << i;
            break;
          case Motion::away:
            EXPECT_LT(growth, 1 / 1.18) << i;
            break;
          case Motion::fall:
            EXPECT_LT((to.y - from.y) * pixels, -12) << i;
            break;
          default:
            EXPECT_GT((to.y - from.y) * pixels, 9) << i;
        }
      }
    }
  }
}

TEST(SceneWorld, KeepsToItsOptions) {
  SceneOptions options;
  options.shapes = {Shape::cone};
  options.colours = {Colour::pink, Colour::black};
  options.motions = {Motion::rise};
  options.cameras = {CameraMove::orbit_right};
  options.materials = {Material::shiny};
  options.sizes = {SolidSize::small};
  options.max_objects = 2;
  const SceneWorld world(options);
  for (int64_t i = 0; i < 100; ++i) {
    const Scene scene = world.clip(26, i).scene;
    EXPECT_LE(scene.num_solids, 2);
    EXPECT_EQ(scene.camera.move, CameraMove::orbit_right);
    for (int a = 0; a < scene.num_solids; ++a) {
      const Solid& solid = scene.solids[a];
      EXPECT_EQ(solid.shape, Shape::cone);
      EXPECT_EQ(solid.motion, Motion::rise);
      EXPECT_TRUE(solid.shiny);
      EXPECT_LT(solid.size, 0.75f);
      EXPECT_TRUE(solid.colour[0] > 0.9f || solid.colour[0] < 0.1f);
    }
  }
  EXPECT_EQ(world.words(), SceneWorld().words());
}

}  // namespace
}  // namespace fovea::pipelines
