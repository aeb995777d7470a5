#pragma once

#include <span>
#include <string>
#include <vector>

#include "pipelines/train/draw.h"
#include "pipelines/train/scene_options.h"

namespace fovea::pipelines {

/// What a caption can say of a solid.
struct SolidWords {
  kernels::Shape shape = kernels::Shape::sphere;
  Colour colour = Colour::red;
  kernels::Motion motion = kernels::Motion::still;
  Material material = Material::matte;
  SolidSize size = SolidSize::big;
  bool name_material = false;
  bool name_size = false;
};

/// One sentence about a clip, lower case: "a red sphere rolls left and a blue cube spins, static
/// camera". The wording is the usual one with probability 0.6, otherwise each part of it is drawn
/// from its synonyms.
///
/// solids  1 to 3, in the order in which they are named
std::string caption_of(std::span<const SolidWords> solids, kernels::CameraMove camera,
                       Draw& random);

/// All words and punctuation marks of `caption_of`, sorted, each once.
std::vector<std::string> caption_words();

}  // namespace fovea::pipelines
