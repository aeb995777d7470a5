#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/json.h"
#include "core/progress.h"
#include "core/report.h"
#include "pipelines/train/train_config.h"
#include "pipelines/train/trainable.h"

namespace fovea::pipelines {

/// Where and from what a task runs.
struct TaskSetup {
  fs::path out;   ///< model folder that the trained components go to
  fs::path init;  ///< model folder whose weights training starts from; empty: new ones
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  int rank = 0;
  int world_size = 1;
};

/// What is trained and by which loss; the trainer knows the rest.
class TrainingTask {
 public:
  virtual ~TrainingTask() = default;

  virtual TrainableParameters& parameters() = 0;
  /// Makes the clips that the first steps from `step` on need, as a stage of the progress.
  virtual void fill(int64_t step, Progress& progress) = 0;
  /// Chooses the clips of step `step` (from 0), and makes those that are new.
  virtual void prepare(int64_t step) = 0;
  /// Loss of part `part` of `parts` of this process' share of the step's batch: a scalar, the mean
  /// over the part.
  virtual at::Tensor loss(int64_t part, int64_t parts) = 0;
  /// Writes the trained components, with the values that the parameters have now, to the model
  /// folder: bf16 weights in shards, configurations.
  virtual void save() = 0;
  /// Measures what `save` wrote on clips that training does not see.
  virtual Json evaluate() = 0;
};

/// Makes the task of `config.stage`. Both references are kept.
///
/// throws  Error bad_data: a key of the model's configuration, a folder that cannot be read; usage:
///         a batch that the processes and micro-batches do not divide
std::unique_ptr<TrainingTask> make_training_task(const TrainConfig& config, const TaskSetup& setup,
                                                 Report& report);

}  // namespace fovea::pipelines
