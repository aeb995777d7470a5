#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/file.h"
#include "pipelines/train/optimizer.h"
#include "pipelines/train/scene_world.h"

namespace fovea::pipelines {

/// What a run trains.
enum class TrainStage {
  autoencoder,  ///< video to latents and back
  transformer,  ///< transformer and text encoder together, on the autoencoder's latents
};

/// Clips of one size, and how a run goes through them.
///
/// Each of the `batch` columns of a bucket keeps `depth` clips; every `refresh` steps each column
/// gives its oldest clip up for a new one. A step takes one clip of every column.
struct ClipBucket {
  int64_t frames = 17, height = 128, width = 128;
  int64_t batch = 8;      ///< clips of a step, over all processes
  int64_t depth = 1;      ///< clips that a column keeps
  int64_t refresh = 1;    ///< steps between new clips; 0: never
  double weight = 1;      ///< share of the steps that take this bucket
  double flow_shift = 3;  ///< shift of the training timesteps, transformer stage
};

/// Weights of the autoencoder's losses, means over pixels or latents; pixels are in [-1, 1].
struct AutoencoderLoss {
  double l1 = 1;
  double mse = 1;
  double gradient = 0.5;  ///< L1 of differences between neighbouring pixels: sharp edges
  double kl = 1e-5;       ///< divergence of the latents' distribution from the unit normal one
};

/// One JSON file that says what `fovea train` does. Unknown keys are errors.
///
///   stage          "autoencoder" or "transformer"
///   steps          optimizer steps
///   seed           of everything that is drawn (0)
///   micro_batches  parts that a step's batch is run in, one after another (1)
///   log_every, checkpoint_every   in steps (20, 500)
///   text_length    tokens that the transformer sees of a text, padding included (512)
///   caption_dropout  share of captions that are replaced by the empty text (0.1)
///   data           scenes: what is rendered (see SceneOptions); samples: rays a pixel, 1 or 4;
///                  buckets: list of {frames, height, width, batch, depth, refresh, weight,
///                  flow_shift}
///   loss           autoencoder: {l1, mse, gradient, kl}
///   optimizer      see OptimizerOptions
///   evaluation     clips: unseen clips to measure the result on, per bucket (64)
///   model          configurations of a new model: vae, transformer, text_encoder (keys of their
///                  config.json), scheduler {flow_shift}
struct TrainConfig {
  TrainStage stage = TrainStage::autoencoder;
  int64_t steps = 1;
  uint64_t seed = 0;
  int64_t micro_batches = 1;
  int64_t log_every = 20;
  int64_t checkpoint_every = 500;
  int64_t text_length = 512;
  double caption_dropout = 0.1;
  SceneOptions scenes;
  int64_t samples = 4;
  std::vector<ClipBucket> buckets;
  AutoencoderLoss loss;
  OptimizerOptions optimizer;
  int64_t evaluation_clips = 64;
  Json model;            ///< the object of that key, or empty
  std::string where;     ///< the file, for errors
  std::string settings;  ///< canonical text of the whole file: a resumed run has the same

  /// throws Error bad_data naming the key
  static TrainConfig read(const fs::path& path);
  static TrainConfig parse(const Json& json, const std::string& where);
  const char* stage_name() const;
  /// The object `model`.NAME as a Config; empty when absent.
  Config model_config(const std::string& name) const;
};

}  // namespace fovea::pipelines
