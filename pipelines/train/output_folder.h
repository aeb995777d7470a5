#pragma once

#include <set>
#include <string>
#include <vector>

#include "core/file.h"
#include "pipelines/train/train_config.h"

namespace fovea::pipelines {

/// Makes FOLDER, which holds an autoencoder, a WanPipeline folder: tokenizer for these words,
/// scheduler, configurations of `config.model`; all but the weights of transformer and text
/// encoder.
///
/// throws  Error bad_data: no autoencoder there, or a key of `config.model`; as
///         `write_folder_skeleton`
void write_new_folder(const fs::path& folder, const std::vector<std::string>& words,
                      const TrainConfig& config);

/// Copies a model folder to another one but for the subfolders named in `without`, and the weights
/// of those in `without_weights`.
///
/// throws  Error resource when a file cannot be written
void copy_model_folder(const fs::path& from, const fs::path& to,
                       const std::set<std::string>& without,
                       const std::set<std::string>& without_weights);

}  // namespace fovea::pipelines
