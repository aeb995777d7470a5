#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/json.h"
#include "core/weights.h"
#include "models/dit/wan/wan.h"
#include "models/text/umt5/umt5_config.h"
#include "models/vae/wan/vae_config.h"

namespace fovea::pipelines {

/// A new WanPipeline folder, all but its weights.
struct FolderPlan {
  models::Umt5Config text_encoder;   ///< vocab_size covers the tokenizer's ids
  models::WanConfig transformer;     ///< text_dim is the text encoder's d_model
  models::WanVaeConfig autoencoder;  ///< with latents_mean and latents_std
  std::vector<std::string> words;    ///< of the tokenizer, see `write_word_tokenizer`
  double flow_shift = 3.0;           ///< of the scheduler
};

/// Throws Error bad_data that names the key when sizes of the parts do not fit each other, usage
/// when a word is none; `where` is the file that they come from.
void check_plan(const FolderPlan& plan, const std::string& where);

/// Writes model_index.json, scheduler/scheduler_config.json, tokenizer/ and the config.json of
/// text_encoder/, transformer/ and vae/, as diffusers 0.42.1 and transformers 5.23 save them. Each
/// file is replaced at once; weights that are there stay. model_index.json comes last: without it
/// nobody takes the folder for a model.
///
/// throws  Error as `check_plan`; resource when a file or folder cannot be made
void write_folder_skeleton(const fs::path& folder, const FolderPlan& plan);

/// The config of a UniPC scheduler for flow matching, Wan2.1's published one but for its shift.
Json unipc_config(double flow_shift);

/// Saves a model's weights as FOLDER/STEM.safetensors, or, where they have more bytes than
/// `max_shard_bytes`, as STEM-00001-of-0000N.safetensors with STEM.safetensors.index.json. A tensor
/// above that size gets a shard of its own. Replaces what an earlier save has left.
///
/// STEM is "diffusion_pytorch_model" in transformer/ and vae/, "model" in text_encoder/.
///
/// At every moment, a crash included, FOLDER holds one whole set for whoever opens it then: the new
/// files are whole before the index (or the single file) that names them is renamed into place, and
/// the old files are removed after that. (A reader that has taken the old index before, and opens
/// its shards after, can find them gone or newer.) While the save runs the disk holds both sets.
/// After a failure the old set is in force.
///
/// folder   is made where it does not exist
/// tensors  any device; stored in their dtype
/// throws   Error usage for no tensors or max_shard_bytes 0, resource (disk full, ...), interrupted
void save_sharded(const fs::path& folder, const std::string& stem, const TensorMap& tensors,
                  uint64_t max_shard_bytes);

}  // namespace fovea::pipelines
