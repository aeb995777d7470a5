#pragma once

#include <optional>
#include <string>

#include "core/config.h"
#include "core/file.h"
#include "core/report.h"

namespace fovea::pipelines {

/// A diffusers model folder of the Wan2.1 family: `model_index.json` and one sub-folder a
/// component.
struct ModelFolder {
  fs::path path;
  bool image_to_video = false;     ///< WanImageToVideoPipeline instead of WanPipeline
  bool has_image_encoder = false;  ///< CLIP image encoder and processor are there
  std::string tokenizer_class;     ///< as model_index.json names it
  std::string text_encoder_class;

  /// Reads model_index.json and checks that every component named there has its folder.
  ///
  /// throws  Error bad_data naming the file and the key: another pipeline class, Wan2.2's second
  ///         transformer, boundary_ratio or expand_timesteps, a missing component
  static ModelFolder open(const fs::path& path, Report& report);

  fs::path component(const std::string& name) const { return path / name; }
  Config config(const std::string& component, const std::string& file = "config.json") const;
  /// SHA-256 over the folder's JSON files and, of each weight file, its size and samples of 4 KiB
  /// spread over it: tells models apart without reading all of a large one.
  std::string fingerprint() const;
};

}  // namespace fovea::pipelines
