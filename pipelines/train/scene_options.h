#pragma once

#include <cstdint>
#include <vector>

#include "core/config.h"
#include "kernels/scene/scene.h"

namespace fovea::pipelines {

enum class Colour : uint8_t {
  red,
  green,
  blue,
  yellow,
  orange,
  purple,
  cyan,
  pink,
  white,
  black,
};
enum class Material : uint8_t { matte, shiny };
enum class SolidSize : uint8_t { small, big };

/// What the clips of a `SceneWorld` may hold; the default is everything. Lists hold each value at
/// most once and at least one.
struct SceneOptions {
  std::vector<kernels::Shape> shapes;
  std::vector<Colour> colours;
  std::vector<kernels::Motion> motions;
  std::vector<kernels::CameraMove> cameras;
  std::vector<Material> materials;
  std::vector<SolidSize> sizes;
  int64_t max_objects = 3;  ///< 1 to 3

  SceneOptions();

  /// Reads the keys "shapes" (sphere, cube, cylinder, cone, torus), "colours" (red, green, blue,
  /// yellow, orange, purple, cyan, pink, white, black), "motions" (still, left, right, closer,
  /// away, bounce, spin, rise, fall), "cameras" (static, orbit_left, orbit_right, closer, rise),
  /// "materials" (matte, shiny), "sizes" (small, big) and "max_objects".
  ///
  /// throws  Error bad_data that names the key: unknown or repeated name, empty list, max_objects
  ///         out of range or above the number of pairs of shape and colour (no two solids of a clip
  ///         are alike), motions among which a shape has none (only a cube or torus is seen to
  ///         spin)
  static SceneOptions read(Config& config);
};

/// Whether one can see such a solid move so: only a cube and an upright torus show that they spin.
bool shows(kernels::Shape shape, kernels::Motion motion);

}  // namespace fovea::pipelines
