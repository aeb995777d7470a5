#pragma once

#include <cstdint>

#include "kernels/scene/scene.h"

namespace fovea::kernels {

struct Vec3 {
  float x, y, z;
};

/// A solid at one moment, as the renderer needs it. Its own axes are the scene's, turned about y.
struct SolidPose {
  Vec3 centre;
  float cos_yaw, sin_yaw;
  Vec3 half;       ///< radii and half heights before rounding; what they mean depends on the shape
  float rounding;  ///< radius of the rounded edges; of the tube for a torus
  float bound;     ///< radius of a sphere about the centre that holds the solid
  float size;      ///< of the `Solid`
  Vec3 albedo;     ///< linear light
  int32_t shape;   ///< a `Shape`
  int32_t shiny;
};

/// A scene at one moment: all that a frame's pixels read. Computed on the host, so that every
/// device starts from the same bits.
struct ScenePose {
  Vec3 eye;
  Vec3 right, up, forward;  ///< unit vectors of the camera
  float focal;              ///< of a picture whose shorter side reaches from -1 to 1
  int32_t num_solids;
  SolidPose solids[kMaxSolids];
};

/// The scene at `time` from 0 to 1. Uses no function of the system's mathematical library that may
/// round differently elsewhere.
ScenePose pose_at(const Scene& scene, double time);

/// Where a point is in the picture: x to the right and y up, from -1 to 1 over the shorter side,
/// and its distance along the viewing direction (units; not visible when <= 0).
struct Projection {
  float x, y, depth;
};
Projection project(const ScenePose& pose, Vec3 point);

}  // namespace fovea::kernels
