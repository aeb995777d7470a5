#include "kernels/scene/pose.h"

#include <cmath>

namespace fovea::kernels {
namespace {

// The camera sees 2 * 22 degrees over the shorter side; at rest it stands before the middle of the
// scene, where a solid of size 1 covers 0.31 of the picture.
constexpr float kFocal = 2.6f;
constexpr Vec3 kTarget = {0.0f, 0.9f, 0.0f};
constexpr double kDistance = 8.3;  // on the floor, from the target
constexpr double kHeight = 3.1;

struct SinCos {
  double sin, cos;
};

/// Of an angle in turns: Taylor series up to half a turn, accurate to 1e-9.
SinCos sin_cos(double turns) {
  const double x = 6.283185307179586 * (turns - std::floor(turns + 0.5));
  SinCos sum = {0, 0};
  double term = 1;  // x^n / n!
  for (int n = 0; n <= 22; n += 2) {
    const double sign = n % 4 == 0 ? 1 : -1;
    sum.cos += sign * term;
    term = term * x / (n + 1);
    sum.sin += sign * term;
    term = term * x / (n + 2);
  }
  return sum;
}

Vec3 minus(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
Vec3 cross(Vec3 a, Vec3 b) {
  return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
Vec3 unit(Vec3 a) {
  const float length = std::sqrt(dot(a, a));
  return {a.x / length, a.y / length, a.z / length};
}

/// Height above the floor after `time` of two jumps as high as 1.
double jump(double time) {
  const double phase = 2 * time - std::floor(2 * time);
  return 4 * phase * (1 - phase);
}

/// Share of the height left after `time` of a fall that takes 0.6 of the clip.
double left_to_fall(double time) {
  const double phase = time / 0.6;
  return phase >= 1 ? 0 : 1 - phase * phase;
}

void set_shape(const Solid& solid, SolidPose& pose) {
  const float s = solid.size;
  switch (solid.shape) {
    case Shape::sphere:
      pose.half = {s, s, s};
      pose.rounding = 0;
      pose.bound = s;
      break;
    case Shape::cube:
      pose.half = {0.75f * s, 0.75f * s, 0.75f * s};
      pose.rounding = 0.07f * s;
      pose.bound = 1.37f * s;
      break;
    case Shape::cylinder:
      pose.half = {0.73f * s, 0.85f * s, 0.73f * s};
      pose.rounding = 0.06f * s;
      pose.bound = 1.19f * s;
      break;
    case Shape::cone:
      pose.half = {0.92f * s, 0.95f * s, 0.92f * s};
      pose.rounding = 0.05f * s;
      pose.bound = 1.38f * s;
      break;
    case Shape::torus:
      pose.half = {0.7f * s, 0.7f * s, 0};
      pose.rounding = 0.3f * s;
      pose.bound = s;
      break;
  }
}

SolidPose solid_at(const Solid& solid, double time) {
  SolidPose pose = {};
  set_shape(solid, pose);
  double x = solid.x, z = solid.z, y = pose.half.y + pose.rounding, yaw = solid.yaw;
  const double travel = solid.travel;
  switch (solid.motion) {
    case Motion::still:
      break;
    case Motion::left:
      x -= travel * time;
      break;
    case Motion::right:
      x += travel * time;
      break;
    case Motion::closer:
      z += travel * time;
      break;
    case Motion::away:
      z -= travel * time;
      break;
    case Motion::bounce:
      y += travel * jump(time);
      break;
    case Motion::spin:
      yaw += travel * time;
      break;
    case Motion::rise:
      y += travel * time;
      break;
    case Motion::fall:
      y += travel * left_to_fall(time);
      break;
  }
  const SinCos turned = sin_cos(yaw);
  pose.centre = {static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)};
  pose.cos_yaw = static_cast<float>(turned.cos);
  pose.sin_yaw = static_cast<float>(turned.sin);
  pose.size = solid.size;
  const float* c = solid.colour;
  pose.albedo = {c[0] * c[0], c[1] * c[1], c[2] * c[2]};
  pose.shape = static_cast<int32_t>(solid.shape);
  pose.shiny = solid.shiny ? 1 : 0;
  return pose;
}

/// Where the camera stands.
Vec3 eye_at(const Camera& camera, double time) {
  // Moves are centred on the place at rest, so that the scene stays in the middle; coming closer
  // begins farther away than it ends near, so that solids at the side stay in view.
  const double moved = camera.travel * (time - (camera.move == CameraMove::closer ? 0.6 : 0.5));
  double distance = kDistance, height = kHeight, turns = 0;
  switch (camera.move) {
    case CameraMove::fixed:
      break;
    case CameraMove::orbit_left:
      turns = -moved;
      break;
    case CameraMove::orbit_right:
      turns = moved;
      break;
    case CameraMove::closer:
      distance -= moved;
      height -= moved * (kHeight - kTarget.y) / kDistance;
      break;
    case CameraMove::rise:
      height += moved;
      break;
  }
  const SinCos around = sin_cos(turns);
  return {static_cast<float>(kTarget.x + distance * around.sin), static_cast<float>(height),
          static_cast<float>(kTarget.z + distance * around.cos)};
}

}  // namespace

ScenePose pose_at(const Scene& scene, double time) {
  ScenePose pose = {};
  pose.eye = eye_at(scene.camera, time);
  pose.forward = unit(minus(kTarget, pose.eye));
  pose.right = unit(cross(pose.forward, {0, 1, 0}));
  pose.up = cross(pose.right, pose.forward);
  pose.focal = kFocal;
  pose.num_solids = scene.num_solids;
  for (int i = 0; i < scene.num_solids; ++i) pose.solids[i] = solid_at(scene.solids[i], time);
  return pose;
}

Projection project(const ScenePose& pose, Vec3 point) {
  const Vec3 offset = minus(point, pose.eye);
  const float depth = dot(offset, pose.forward);
  return {pose.focal * dot(offset, pose.right) / depth, pose.focal * dot(offset, pose.up) / depth,
          depth};
}

}  // namespace fovea::kernels
