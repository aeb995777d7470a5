#pragma once

// Arithmetic that CPU and CUDA round alike: + - * /, sqrt, comparisons, floor. No powf, expf or
// fmaf, and both compilers are told not to contract products and sums.

#include <cmath>

#include "kernels/common/host_device.h"
#include "kernels/scene/pose.h"

namespace fovea::kernels::scene {

FOVEA_HD inline Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
FOVEA_HD inline Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
FOVEA_HD inline Vec3 operator*(Vec3 a, Vec3 b) { return {a.x * b.x, a.y * b.y, a.z * b.z}; }
FOVEA_HD inline Vec3 operator*(Vec3 a, float s) { return {a.x * s, a.y * s, a.z * s}; }
FOVEA_HD inline float dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
FOVEA_HD inline float length(Vec3 a) { return sqrtf(dot(a, a)); }
FOVEA_HD inline Vec3 unit(Vec3 a) { return a * (1.0f / length(a)); }
FOVEA_HD inline Vec3 mix(Vec3 a, Vec3 b, float t) { return a + (b - a) * t; }

FOVEA_HD inline float least(float a, float b) { return a < b ? a : b; }
FOVEA_HD inline float most(float a, float b) { return a > b ? a : b; }
FOVEA_HD inline float clamp(float x, float low, float high) { return least(most(x, low), high); }
FOVEA_HD inline float absolute(float x) { return x < 0 ? -x : x; }
FOVEA_HD inline float square(float x) { return x * x; }
FOVEA_HD inline float smooth(float x) { return x * x * (3.0f - 2.0f * x); }  ///< x from 0 to 1

}  // namespace fovea::kernels::scene
