#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/scene/scene.h"
#include "pipelines/train/scene_options.h"

namespace fovea::pipelines {

/// A clip to render, and the sentence that says what it shows.
struct SceneClip {
  kernels::Scene scene;  ///< solids from left to right, as seen in the first frame
  std::string caption;   ///< names them in this order; see `caption_of`
};

/// An endless set of clips: one to three solids on a floor, each with a motion, under a moving
/// camera. Solids stay in view (of the square in the middle of the picture) and apart; no two of a
/// clip have the same shape and colour.
class SceneWorld {
 public:
  explicit SceneWorld(SceneOptions options = {});

  /// The clip of a number: the same on every machine, and independent of other clips.
  SceneClip clip(uint64_t seed, int64_t index) const;

  /// Every lower-case word and punctuation mark that captions can hold whatever the options,
  /// sorted, each once.
  std::vector<std::string> words() const;

 private:
  SceneOptions options_;
};

}  // namespace fovea::pipelines
