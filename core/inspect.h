#pragma once

#include <string>

#include "core/file.h"
#include "core/json.h"

namespace fovea {

/// What a file or folder holds: the same facts as JSON and as text for people.
struct Description {
  Json json;
  std::string text;  ///< lines, the last one ended
};

/// Says what `path` holds without loading weights: headers and JSON files are all that is read.
///
/// A .safetensors file: every tensor with dtype, shape and bytes. A .safetensors.index.json or a
/// component folder (config.json and weights): files, class, parameters, config. A model folder
/// (model_index.json): all of its components. Each with totals per dtype and the memory that the
/// parameters need in fp32 and in bf16, integer tensors counted as they are stored.
///
/// json    "kind" is "safetensors", "component" or "model"; sizes in bytes
/// throws  Error bad_data when the path is none of these or is malformed
Description describe(const fs::path& path);

}  // namespace fovea
