#pragma once

#include <cstdint>

namespace fovea::kernels {

/// Space of a scene: x to the right, y up, z towards the camera; the floor is y = 0, and a big
/// solid measures about 2 units. Time runs from 0 to 1 over a clip, whatever its number of frames.
enum class Shape : uint8_t { sphere, cube, cylinder, cone, torus };

/// What a solid does between time 0 and 1.
enum class Motion : uint8_t {
  still,
  left,    ///< along -x by `travel` units
  right,   ///< along +x by `travel` units
  closer,  ///< along +z by `travel` units
  away,    ///< along -z by `travel` units
  bounce,  ///< two jumps, `travel` units high
  spin,    ///< about its vertical axis by `travel` turns
  rise,    ///< from the floor up by `travel` units
  fall,    ///< from `travel` units onto the floor, where it stays
};

/// What the camera does between time 0 and 1; it looks at the middle of the scene all the time.
enum class CameraMove : uint8_t {
  fixed,
  orbit_left,   ///< round the scene by `travel` turns, towards its own left
  orbit_right,  ///< the same towards its right
  closer,       ///< towards the scene by `travel` units
  rise,         ///< up by `travel` units
};

/// One solid at time 0. Cylinders, cones and cubes stand upright; a torus stands on its edge and
/// shows its hole to the camera when `yaw` is 0.
struct Solid {
  Shape shape = Shape::sphere;
  Motion motion = Motion::still;
  bool shiny = false;           ///< mirrors the sun, sky and floor; otherwise matte
  float colour[3] = {1, 1, 1};  ///< red, green, blue from 0 to 1, display values
  float size = 1;               ///< about half its width and height
  float x = 0;                  ///< where it stands on the floor
  float z = 0;
  float yaw = 0;     ///< turns about the vertical axis
  float travel = 0;  ///< how far its motion goes
};

struct Camera {
  CameraMove move = CameraMove::fixed;
  float travel = 0;  ///< how far its move goes
};

constexpr int kMaxSolids = 3;

struct Scene {
  int num_solids = 1;  ///< 1 to kMaxSolids
  Solid solids[kMaxSolids];
  Camera camera;
};

}  // namespace fovea::kernels
