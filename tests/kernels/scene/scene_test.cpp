#include <gtest/gtest.h>

#include <cmath>
#include <string_view>
#include <thread>
#include <vector>

#include "core/file.h"
#include "kernels/scene/distance.h"
#include "kernels/scene/render.h"

namespace fovea::kernels {
namespace {

constexpr int kSide = 96;

struct Image {
  int height, width;
  std::vector<uint8_t> rgb;

  /// Mean of the channels at a place of the picture, see `Projection`.
  double grey(float x, float y) const {
    const uint8_t* p = at(x, y);
    return (p[0] + p[1] + p[2]) / 3.0;
  }
  const uint8_t* at(float x, float y) const {
    const float side = static_cast<float>(std::min(height, width)) / 2;
    const int column = static_cast<int>(width / 2.0f + x * side);
    const int row = static_cast<int>(height / 2.0f - y * side);
    return &rgb.at((row * width + column) * 3);
  }
};

Image render(const Scene& scene, double time = 0, int samples = 4, int height = kSide,
             int width = kSide) {
  const ScenePose pose = pose_at(scene, time);
  Image image{height, width, std::vector<uint8_t>(height * width * 3)};
  const RenderArgs args{.poses = &pose,
                        .out = image.rgb.data(),
                        .num_pictures = 1,
                        .height = height,
                        .width = width,
                        .samples = samples};
  EXPECT_TRUE(render_cpu(args, {0, height}).ok());
  return image;
}

Scene lone(Shape shape, Motion motion = Motion::still, float travel = 0) {
  Scene scene;
  scene.solids[0] = {
      .shape = shape, .motion = motion, .colour = {0.9f, 0.1f, 0.1f}, .travel = travel};
  return scene;
}

Projection projected(const Scene& scene, Vec3 point, double time = 0) {
  return project(pose_at(scene, time), point);
}

TEST(RenderCpu, ALoneRedSphereIsRedWhereItIsProjected) {
  for (const double time : {0.0, 0.5, 1.0}) {
    const Scene scene = lone(Shape::sphere, Motion::left, 2);
    const ScenePose pose = pose_at(scene, time);
    const Projection centre = project(pose, pose.solids[0].centre);
    const Image image = render(scene, time);
    const float radius = pose.focal / centre.depth;
    for (const float x : {-0.8f, 0.0f, 0.8f}) {
      const uint8_t* inside = image.at(centre.x + x * radius, centre.y);
      EXPECT_GT(inside[0], 80) << time;
      EXPECT_LT(inside[1], inside[0] / 2) << time;
      EXPECT_LT(inside[2], inside[0] / 2) << time;
    }
    for (const float x : {-1.25f, 1.25f}) {
      const uint8_t* outside = image.at(centre.x + x * radius, centre.y);
      EXPECT_LT(std::abs(outside[0] - outside[2]), 60) << time;
    }
  }
}

TEST(RenderCpu, TheFloorIsCheckeredAndTheSkyIsBlue) {
  const Scene scene = lone(Shape::sphere);
  const Image image = render(scene);
  const auto tile = [&](float x, float z) {
    const Projection at = projected(scene, {x, 0, z});
    return image.grey(at.x, at.y);
  };
  EXPECT_GT(tile(-1.9f, 3.2f) - tile(-0.8f, 3.2f), 25);
  EXPECT_NEAR(tile(-1.9f, 3.2f), tile(0.8f, 3.2f), 12);
  EXPECT_GT(tile(-0.8f, 1.6f) - tile(-0.8f, 3.2f), 25);
  const uint8_t* sky = image.at(0, 0.98f);
  EXPECT_GT(sky[2], sky[0] + 10);
  EXPECT_GT(sky[0], 100);
}

TEST(RenderCpu, TheFloorDoesNotFlickerInTheDistance) {
  // Rows just below the horizon: tiles are far below a pixel there.
  const Image image = render(lone(Shape::sphere), 0, 1);
  const Projection far = projected(lone(Shape::sphere), {0, 0, -60});
  for (int column = 1; column < kSide; ++column) {
    const float x = (column + 0.5f) / (kSide / 2.0f) - 1;
    EXPECT_NEAR(image.grey(x, far.y), image.grey(x - 2.0f / kSide, far.y), 6) << column;
  }
}

TEST(RenderCpu, ASolidCastsItsShadowAwayFromTheSun) {
  const Scene scene = lone(Shape::sphere, Motion::rise, 1.5f);
  for (const double time : {0.0, 1.0}) {
    const Vec3 centre = pose_at(scene, time).solids[0].centre;
    const float t = centre.y / 0.7f;  // the sun stands at (-0.5, 0.7, 0.51)
    const Vec3 shadow = {centre.x + 0.5f * t, 0, centre.z - 0.51f * t};
    Scene moved = scene;
    moved.solids[0].x = -20;
    const Projection at = projected(scene, shadow, time);
    EXPECT_LT(render(scene, time).grey(at.x, at.y), 0.75 * render(moved, time).grey(at.x, at.y))
        << time;
  }
}

TEST(RenderCpu, ContactDarkensTheFloorBelow) {
  // In front of a sphere, out of its shadow.
  const Scene low = lone(Shape::sphere);
  Scene moved = low;
  moved.solids[0].x = -20;
  const Projection at = projected(low, {-0.25f, 0, 0.65f});
  EXPECT_LT(render(low).grey(at.x, at.y), 0.97 * render(moved).grey(at.x, at.y));
}

TEST(RenderCpu, ShinySolidsHaveAHighlight) {
  Scene scene = lone(Shape::sphere);
  const auto brightest_green = [&] {
    const Image image = render(scene);
    const Projection centre = projected(scene, {0, 1, 0});
    int most = 0;
    for (float y = -0.2f; y <= 0.2f; y += 0.02f) {
      for (float x = -0.2f; x <= 0.2f; x += 0.02f)
        most = std::max<int>(most, image.at(centre.x + x, centre.y + y)[1]);
    }
    return most;
  };
  const int matte = brightest_green();
  scene.solids[0].shiny = true;
  EXPECT_LT(matte, 60);
  EXPECT_GT(brightest_green(), 180);
}

TEST(RenderCpu, ATorusShowsItsHole) {
  const Scene scene = lone(Shape::torus);
  const Projection centre = projected(scene, {0, 1, 0});
  const Image image = render(scene);
  const float radius = 2.6f / centre.depth;
  const auto redness = [&](float x) {
    const uint8_t* p = image.at(centre.x + x * radius, centre.y);
    return p[0] - p[2];
  };
  EXPECT_LT(std::abs(redness(0)), 40);
  EXPECT_GT(redness(-0.7f), 60);
  EXPECT_GT(redness(0.7f), 60);
}

TEST(RenderCpu, AnySplitOfRowsGivesTheSameBytes) {
  Scene scene = lone(Shape::torus);
  scene.num_solids = 3;
  scene.solids[1] = {.shape = Shape::cube, .shiny = true, .x = -2, .yaw = 0.1f};
  scene.solids[2] = {.shape = Shape::cone, .x = 2, .z = -1};
  const std::vector<ScenePose> poses = {pose_at(scene, 0), pose_at(scene, 1)};
  constexpr int kHeight = 40, kWidth = 56;
  std::vector<uint8_t> whole(2 * kHeight * kWidth * 3), split(whole.size(), 1);
  RenderArgs args{.poses = poses.data(),
                  .out = whole.data(),
                  .num_pictures = 2,
                  .height = kHeight,
                  .width = kWidth};
  ASSERT_TRUE(render_cpu(args, {0, 2 * kHeight}).ok());
  args.out = split.data();
  std::vector<std::thread> threads;
  for (const RowRange range :
       {RowRange{0, 7}, RowRange{7, 39}, RowRange{39, 43}, RowRange{43, 2 * kHeight}}) {
    threads.emplace_back([&args, range] { EXPECT_TRUE(render_cpu(args, range).ok()); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(whole, split);
}

TEST(RenderCpu, ASmallPictureIsKnownByteForByte) {
  Scene scene = lone(Shape::sphere);
  scene.num_solids = 3;
  scene.solids[0].x = -1.5f;
  scene.solids[1] = {.shape = Shape::cylinder,
                     .shiny = true,
                     .colour = {0.1f, 0.3f, 0.9f},
                     .size = 0.8f,
                     .x = 1.6f};
  scene.solids[2] = {.shape = Shape::torus,
                     .motion = Motion::spin,
                     .shiny = true,
                     .colour = {0.9f, 0.8f, 0.1f},
                     .size = 0.6f,
                     .z = 1.5f,
                     .travel = 0.6f};
  scene.camera = {CameraMove::orbit_left, 0.1f};
  const Image image = render(scene, 0.25, 4, 36, 64);
  const std::string_view bytes(reinterpret_cast<const char*>(image.rgb.data()), image.rgb.size());
  EXPECT_EQ(sha256(bytes), "214ef81a934b0e9ae1173a0c0e4842542256bd22cfb1b1a8de94274cccc260fd");
}

TEST(RenderCpu, RefusesArgumentsThatContradict) {
  const ScenePose pose = pose_at(lone(Shape::sphere), 0);
  uint8_t byte = 0;
  const RenderArgs good{.poses = &pose, .out = &byte, .num_pictures = 1, .height = 1, .width = 1};
  EXPECT_TRUE(check(good).ok());
  const auto refused = [&](auto change) {
    RenderArgs args = good;
    change(args);
    return check(args).code == StatusCode::invalid &&
           render_cpu(args, {0, 1}).code == StatusCode::invalid;
  };
  EXPECT_TRUE(refused([](RenderArgs& a) { a.samples = 2; }));
  EXPECT_TRUE(refused([](RenderArgs& a) { a.height = 0; }));
  EXPECT_TRUE(refused([](RenderArgs& a) { a.width = -1; }));
  EXPECT_TRUE(refused([](RenderArgs& a) { a.num_pictures = -1; }));
  EXPECT_TRUE(refused([](RenderArgs& a) { a.poses = nullptr; }));
  EXPECT_TRUE(refused([](RenderArgs& a) { a.out = nullptr; }));
}

// What sphere tracing relies on.
TEST(Distance, NeverExceedsTheWayToTheSurfaceAndFitsTheBound) {
  for (const Shape shape :
       {Shape::sphere, Shape::cube, Shape::cylinder, Shape::cone, Shape::torus}) {
    const SolidPose solid = pose_at(lone(shape), 0).solids[0];
    std::vector<Vec3> points;
    for (int i = 0; i < 300; ++i) {
      const auto part = [i](int stride) { return (i * stride % 97) / 97.0f * 4 - 2; };
      points.push_back({part(31), part(57), part(83)});
    }
    float lowest = 1e9f;
    for (const Vec3 a : points) {
      const float at_a = scene::distance_to(solid, a);
      const float from_centre = std::sqrt(a.x * a.x + a.y * a.y + a.z * a.z);
      if (from_centre > solid.bound) {
        EXPECT_GT(at_a, 0);
      }
      // The lowest point of a solid that stands is the floor.
      if (at_a < 0) lowest = std::min(lowest, a.y + solid.centre.y);
      for (const Vec3 b : points) {
        const Vec3 d = {a.x - b.x, a.y - b.y, a.z - b.z};
        const float apart = std::sqrt(d.x * d.x + d.y * d.y + d.z * d.z);
        EXPECT_LE(std::abs(at_a - scene::distance_to(solid, b)), apart + 1e-5f);
      }
    }
    EXPECT_GE(lowest, 0) << static_cast<int>(shape);
    // It touches the floor: the distance to the plane below the centre is 0.
    float gap = 1e9f;
    for (float x = -1; x <= 1; x += 0.01f)
      gap = std::min(gap, scene::distance_to(solid, {x, -solid.centre.y, 0}));
    EXPECT_NEAR(gap, 0, 1e-3) << static_cast<int>(shape);
  }
}

TEST(Pose, MotionsGoWhereTheyAreNamedAfter) {
  const auto centre = [](Motion motion, double time) {
    return pose_at(lone(Shape::cube, motion, 1.5f), time).solids[0].centre;
  };
  const Vec3 rest = centre(Motion::still, 0.3);
  EXPECT_FLOAT_EQ(rest.y, 0.82f);
  EXPECT_FLOAT_EQ(centre(Motion::left, 1).x, -1.5f);
  EXPECT_FLOAT_EQ(centre(Motion::right, 0.5).x, 0.75f);
  EXPECT_FLOAT_EQ(centre(Motion::closer, 1).z, 1.5f);
  EXPECT_FLOAT_EQ(centre(Motion::away, 1).z, -1.5f);
  EXPECT_FLOAT_EQ(centre(Motion::rise, 1).y, rest.y + 1.5f);
  for (const double floor : {0.0, 0.5, 1.0})
    EXPECT_FLOAT_EQ(centre(Motion::bounce, floor).y, rest.y) << floor;
  for (const double top : {0.25, 0.75})
    EXPECT_FLOAT_EQ(centre(Motion::bounce, top).y, rest.y + 1.5f) << top;
  EXPECT_FLOAT_EQ(centre(Motion::fall, 0).y, rest.y + 1.5f);
  EXPECT_FLOAT_EQ(centre(Motion::fall, 0.6).y, rest.y);
  EXPECT_FLOAT_EQ(centre(Motion::fall, 1).y, rest.y);
  const SolidPose spun = pose_at(lone(Shape::cube, Motion::spin, 0.5f), 0.5).solids[0];
  EXPECT_NEAR(spun.cos_yaw, 0, 1e-6);  // a quarter turn
  EXPECT_NEAR(spun.sin_yaw, 1, 1e-6);
}

TEST(Pose, CameraMovesGoWhereTheyAreNamedAfter) {
  const auto eye = [](CameraMove move, float travel, double time) {
    Scene scene = lone(Shape::sphere);
    scene.camera = {move, travel};
    return pose_at(scene, time).eye;
  };
  const Vec3 rest = eye(CameraMove::fixed, 5, 0.8);
  EXPECT_EQ(rest.x, 0);
  EXPECT_GT(eye(CameraMove::orbit_left, 0.1f, 0).x, 2);
  EXPECT_LT(eye(CameraMove::orbit_left, 0.1f, 1).x, -2);
  EXPECT_LT(eye(CameraMove::orbit_right, 0.1f, 0).x, -2);
  EXPECT_GT(eye(CameraMove::orbit_right, 0.1f, 1).x, 2);
  EXPECT_FLOAT_EQ(eye(CameraMove::orbit_left, 0.1f, 0.2).y, rest.y);
  EXPECT_LT(eye(CameraMove::closer, 3, 1).z, eye(CameraMove::closer, 3, 0).z - 2.9);
  EXPECT_GT(eye(CameraMove::rise, 3, 1).y, eye(CameraMove::rise, 3, 0).y + 2.9);
  // The middle of the scene stays in the middle of the picture.
  Scene scene = lone(Shape::sphere);
  scene.camera = {CameraMove::orbit_left, 0.1f};
  const Projection middle = projected(scene, {0, 0.9f, 0}, 0.9);
  EXPECT_NEAR(middle.x, 0, 1e-6);
  EXPECT_NEAR(middle.y, 0, 1e-6);
}

}  // namespace
}  // namespace fovea::kernels
