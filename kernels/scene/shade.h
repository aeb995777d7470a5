#pragma once

// Light and colour of one pixel; what render_cpu.cpp and render.cu share.

#include <cstdint>

#include "kernels/scene/distance.h"

namespace fovea::kernels {

struct Bytes3 {
  uint8_t value[3];
};

namespace scene {

// Linear light throughout; the display value is its square root.
constexpr Vec3 kSunDirection = {-0.5f, 0.7f, 0.5099f};  // unit, from the left, before us
constexpr Vec3 kSun = {0.86f, 0.83f, 0.76f};
constexpr Vec3 kSkyLight = {0.34f, 0.37f, 0.42f};
constexpr Vec3 kFloorLight = {0.25f, 0.245f, 0.24f};
constexpr Vec3 kHorizon = {0.78f, 0.86f, 0.93f};
constexpr Vec3 kZenith = {0.13f, 0.36f, 0.76f};
constexpr Vec3 kTileLight = {0.47f, 0.50f, 0.53f};
constexpr Vec3 kTileDark = {0.28f, 0.31f, 0.345f};
constexpr float kTileSize = 1.6f;

FOVEA_HD inline Vec3 sky(Vec3 direction) {
  const float y = most(direction.y, 0.0f);
  return mix(kHorizon, kZenith, y / (y + 0.30f));
}

/// Haze over a distance: none on the scene, all at the horizon.
FOVEA_HD inline Vec3 through_haze(Vec3 colour, float distance) {
  const float u = square(square(distance * (1.0f / 22.0f)));
  return mix(colour, kHorizon, u / (1.0f + u));
}

/// Mean over a box of `width` about x of a wave that is 1 on [0, 1), -1 on [1, 2), and so on.
FOVEA_HD inline float square_wave(float x, float width) {
  const float a = (x - 0.5f * width) * 0.5f, b = (x + 0.5f * width) * 0.5f;
  const float from = absolute(a - floorf(a) - 0.5f), to = absolute(b - floorf(b) - 0.5f);
  return 2.0f * (from - to) / width;
}

/// Colour of the checkered floor, averaged over a box about the point. No edge of a tile runs along
/// the lower edge of the camera's picture at rest.
FOVEA_HD inline Vec3 tiles(Vec3 p, float width_x, float width_z) {
  constexpr float kPerUnit = 1.0f / kTileSize;
  const float wave = square_wave(p.x * kPerUnit, width_x * kPerUnit) *
                     square_wave(p.z * kPerUnit + 0.5f, width_z * kPerUnit);
  return mix(kTileDark, kTileLight, 0.5f + 0.5f * wave);
}

/// Share of the sun at a point; `self` is the solid that it lies on, or -1. Only a torus shades
/// itself beyond what its normals say.
FOVEA_HD inline float sunlight(const ScenePose& pose, Vec3 p, int self) {
  float passed = 1.0f;
  for (int i = 0; i < pose.num_solids; ++i) {
    if (i == self && pose.solids[i].shape != static_cast<int32_t>(Shape::torus)) continue;
    passed = least(passed, sun_passed(pose.solids[i], {p, kSunDirection}));
  }
  return passed;
}

/// Share of the sky's light that reaches a point of the floor beside and under the solids.
FOVEA_HD inline float openness(const ScenePose& pose, Vec3 p) {
  float open = 1.0f;
  for (int i = 0; i < pose.num_solids; ++i) {
    const SolidPose& solid = pose.solids[i];
    const float reach = 0.9f * solid.size;
    const Vec3 offset = p - solid.centre;
    if (dot(offset, offset) > square(solid.bound + reach)) continue;
    const float distance = distance_to(solid, to_solid(solid, offset));
    const float near = 1.0f - clamp(distance / reach, 0.0f, 1.0f);
    open = open * (1.0f - 0.65f * near * near);
  }
  return open;
}

FOVEA_HD inline Vec3 shade_floor(const ScenePose& pose, const Ray& ray, float t, float step) {
  const Vec3 p = {ray.origin.x + ray.direction.x * t, 0.0f, ray.origin.z + ray.direction.z * t};
  // What a step of one sample to the right and one up moves the point by.
  const float right = t * step, up = t * step / most(-ray.direction.y, 1e-4f);
  const float width_x = absolute(pose.right.x) * right + absolute(pose.right.z) * up;
  const float width_z = absolute(pose.right.z) * right + absolute(pose.right.x) * up;
  const float sun = sunlight(pose, p, -1) * kSunDirection.y;
  const Vec3 light = kSun * sun + kSkyLight * openness(pose, p);
  return through_haze(tiles(p, width_x, width_z) * light, t);
}

/// What a shiny solid mirrors: the sky, or the floor without shadows.
FOVEA_HD inline Vec3 mirrored(Vec3 p, Vec3 direction) {
  if (direction.y >= -0.02f) return sky(direction);
  const float t = p.y / -direction.y;
  const float blur = 0.3f + 0.25f * t;
  const Vec3 light = kSun * kSunDirection.y + kSkyLight;
  return through_haze(tiles(p + direction * t, blur, blur) * light, 3.0f * t);
}

FOVEA_HD inline Vec3 shade_solid(const ScenePose& pose, int index, const Ray& ray, float t) {
  const SolidPose& solid = pose.solids[index];
  const Vec3 p = ray.origin + ray.direction * t;
  const Vec3 n = from_solid(solid, normal_at(solid, to_solid(solid, p - solid.centre)));
  const float facing_sun = dot(n, kSunDirection);
  const float sun = facing_sun > 0 ? sunlight(pose, p + n * 0.01f, index) : 0.0f;
  // The nearer to the floor and the more turned to it, the less light comes from below.
  const float upward = 0.5f + 0.5f * n.y;
  const float contact = square(1.0f - clamp(p.y, 0.0f, 1.0f)) * (1.0f - upward);
  const Vec3 ambient = mix(kFloorLight, kSkyLight, upward) * (1.0f - 0.8f * contact);
  const Vec3 diffuse = solid.albedo * (ambient + kSun * (most(facing_sun, 0.0f) * sun));
  if (!solid.shiny) return through_haze(diffuse, t);

  const float facing_eye = most(-dot(n, ray.direction), 0.0f);
  const float grazing = square(square(1.0f - facing_eye)) * (1.0f - facing_eye);
  const Vec3 bounced = ray.direction + n * (2.0f * facing_eye);
  const float share = 0.045f + 0.5f * grazing;
  const float highlight = most(dot(n, unit(kSunDirection - ray.direction)), 0.0f);
  const float power = square(square(square(square(square(square(highlight))))));  // 64
  const Vec3 mirror = mirrored(p, bounced) * (share * (1.0f - 0.6f * contact));
  return through_haze(diffuse * (1.0f - share) + mirror + kSun * (1.3f * power * sun), t);
}

/// Colour of one ray. step: angle between neighbouring samples.
FOVEA_HD inline Vec3 colour_of(const ScenePose& pose, const Ray& ray, float step) {
  float nearest = ray.direction.y < -1e-4f ? ray.origin.y / -ray.direction.y : kMiss;
  int index = -1;
  for (int i = 0; i < pose.num_solids; ++i) {
    const float t = trace(pose.solids[i], ray, nearest);
    if (t < nearest) {
      nearest = t;
      index = i;
    }
  }
  if (index >= 0) return shade_solid(pose, index, ray, nearest);
  return nearest < kMiss ? shade_floor(pose, ray, nearest, step) : sky(ray.direction);
}

/// Which pixel of which picture.
struct PixelOf {
  int height, width, samples;
  int x, y;
};

FOVEA_HD inline uint8_t display_byte(float linear) {
  return static_cast<uint8_t>(sqrtf(clamp(linear, 0.0f, 1.0f)) * 255.0f + 0.5f);
}

FOVEA_HD inline Bytes3 pixel_of(const ScenePose& pose, const PixelOf& at) {
  const float side = static_cast<float>(at.height < at.width ? at.height : at.width);
  const float pitch = 2.0f / (side * pose.focal);  // of pixels, at distance 1
  Vec3 sum = {0, 0, 0};
  for (int s = 0; s < at.samples; ++s) {
    // A grid of 2 x 2, rotated so that no two samples share a row or column.
    const float offset_x = at.samples == 1 ? 0.5f : 0.375f + 0.5f * (s & 1) - 0.25f * (s >> 1);
    const float offset_y = at.samples == 1 ? 0.5f : 0.125f + 0.25f * (s & 1) + 0.5f * (s >> 1);
    const float u = (at.x + offset_x - 0.5f * at.width) * pitch;
    const float v = (0.5f * at.height - at.y - offset_y) * pitch;
    const Ray ray = {pose.eye, unit(pose.forward + pose.right * u + pose.up * v)};
    const Vec3 colour = colour_of(pose, ray, at.samples == 1 ? pitch : 0.5f * pitch);
    sum = sum + Vec3{least(colour.x, 1.0f), least(colour.y, 1.0f), least(colour.z, 1.0f)};
  }
  const float share = 1.0f / at.samples;
  return {{display_byte(sum.x * share), display_byte(sum.y * share), display_byte(sum.z * share)}};
}

}  // namespace scene
}  // namespace fovea::kernels
