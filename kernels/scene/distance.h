#pragma once

// Signed distances of the solids, and rays that walk along them.

#include "kernels/scene/vec.h"

namespace fovea::kernels::scene {

struct Ray {
  Vec3 origin;
  Vec3 direction;  ///< unit
};

constexpr float kMiss = 1e30f;

/// A direction of the scene in the solid's axes, and back.
FOVEA_HD inline Vec3 to_solid(const SolidPose& solid, Vec3 v) {
  return {solid.cos_yaw * v.x - solid.sin_yaw * v.z, v.y,
          solid.sin_yaw * v.x + solid.cos_yaw * v.z};
}
FOVEA_HD inline Vec3 from_solid(const SolidPose& solid, Vec3 v) {
  return {solid.cos_yaw * v.x + solid.sin_yaw * v.z, v.y,
          solid.cos_yaw * v.z - solid.sin_yaw * v.x};
}

/// Distance of a point outside of a right-angled corner whose edges are at 0, negative inside.
FOVEA_HD inline float corner_distance(float x, float y) {
  const float outside_x = most(x, 0.0f), outside_y = most(y, 0.0f);
  return sqrtf(outside_x * outside_x + outside_y * outside_y) + least(most(x, y), 0.0f);
}

/// Of the triangle from (0, 0) over (radius, 0) to (0, height), mirrored at x = 0.
FOVEA_HD inline float cone_distance(float x, float y, float radius, float height) {
  const float beyond = most(x - radius, 0.0f);
  const float base = beyond * beyond + y * y;
  const float along =
      clamp((y * height - (x - radius) * radius) / (radius * radius + height * height), 0.0f, 1.0f);
  const float side = square(x - radius + along * radius) + square(y - along * height);
  const float distance = sqrtf(least(base, side));
  return y > 0 && x * height + y * radius < radius * height ? -distance : distance;
}

/// Signed distance of a point in the solid's axes, from its centre.
FOVEA_HD inline float distance_to(const SolidPose& solid, Vec3 p) {
  const Vec3 half = solid.half;
  switch (static_cast<Shape>(solid.shape)) {
    case Shape::sphere:
      return length(p) - half.x;
    case Shape::cube: {
      const Vec3 d = {absolute(p.x) - half.x, absolute(p.y) - half.y, absolute(p.z) - half.z};
      const Vec3 outside = {most(d.x, 0.0f), most(d.y, 0.0f), most(d.z, 0.0f)};
      return length(outside) + least(most(d.x, most(d.y, d.z)), 0.0f) - solid.rounding;
    }
    case Shape::cylinder:
      return corner_distance(sqrtf(p.x * p.x + p.z * p.z) - half.x, absolute(p.y) - half.y) -
             solid.rounding;
    case Shape::cone:
      return cone_distance(sqrtf(p.x * p.x + p.z * p.z), p.y + half.y, half.x, 2.0f * half.y) -
             solid.rounding;
    case Shape::torus:
      return sqrtf(square(sqrtf(p.x * p.x + p.y * p.y) - half.x) + p.z * p.z) - solid.rounding;
  }
  return kMiss;
}

/// Unit normal at a point in the solid's axes: differences towards the corners of a tetrahedron.
FOVEA_HD inline Vec3 normal_at(const SolidPose& solid, Vec3 p) {
  constexpr float kStep = 0.002f;
  const float a = distance_to(solid, p + Vec3{kStep, -kStep, -kStep});
  const float b = distance_to(solid, p + Vec3{-kStep, -kStep, kStep});
  const float c = distance_to(solid, p + Vec3{-kStep, kStep, -kStep});
  const float d = distance_to(solid, p + Vec3{kStep, kStep, kStep});
  return unit({a - b - c + d, c - a - b + d, b - a - c + d});
}

/// Distance along the ray to the solid, or kMiss when it is not met before `limit`.
FOVEA_HD inline float trace(const SolidPose& solid, const Ray& ray, float limit) {
  const Vec3 offset = ray.origin - solid.centre;
  const float middle = -dot(offset, ray.direction);
  const float reach = middle * middle - dot(offset, offset) + solid.bound * solid.bound;
  if (reach <= 0) return kMiss;
  const float half_chord = sqrtf(reach);
  const float end = least(middle + half_chord, limit);
  const Vec3 origin = to_solid(solid, offset), direction = to_solid(solid, ray.direction);
  float t = most(middle - half_chord, 0.0f);
  float distance = kMiss;
  for (int i = 0; i < 64 && t < end; ++i) {
    distance = distance_to(solid, origin + direction * t);
    if (distance < 0.0005f) return t;
    t += distance;
  }
  return t < end && distance < 0.005f ? t : kMiss;
}

/// Share of the sun that one solid lets pass to a point, 0 to 1: how closely the ray towards the
/// sun passes it, relative to the distance, is how much of the sun's disc is seen.
FOVEA_HD inline float sun_passed(const SolidPose& solid, const Ray& ray) {
  constexpr float kSharpness = 11.0f;
  const Vec3 offset = ray.origin - solid.centre;
  const float middle = -dot(offset, ray.direction);
  // Farther from the ray than this, the solid's bound darkens nothing.
  const float reach = solid.bound + most(middle, 0.0f) / kSharpness;
  const float chord = middle * middle - dot(offset, offset) + reach * reach;
  if (chord <= 0) return 1.0f;
  const float half_chord = sqrtf(chord);
  const float end = middle + half_chord;
  const Vec3 origin = to_solid(solid, offset), direction = to_solid(solid, ray.direction);
  float t = most(middle - half_chord, 0.02f);
  float passed = 1.0f;
  for (int i = 0; i < 40 && t < end; ++i) {
    const float distance = distance_to(solid, origin + direction * t);
    passed = least(passed, 0.5f + 0.5f * kSharpness * distance / t);
    if (passed <= 0) return 0.0f;
    // Half the free distance, as the least ratio may lie between two steps.
    t += clamp(distance * 0.6f, 0.03f, 0.5f);
  }
  return smooth(passed);
}

}  // namespace fovea::kernels::scene
