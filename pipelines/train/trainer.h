#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/process_group.h"
#include "core/progress.h"
#include "core/report.h"
#include "pipelines/train/checkpoint.h"
#include "pipelines/train/optimizer.h"
#include "pipelines/train/train_config.h"
#include "pipelines/train/train_log.h"
#include "pipelines/train/training_task.h"

namespace fovea::pipelines {

/// One run of `fovea train`.
struct TrainRequest {
  TrainConfig config;
  fs::path out;   ///< model folder to write; OUT/training holds checkpoint and log
  fs::path init;  ///< model folder to start from, or empty
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  bool resume = false;     ///< go on from the checkpoint, if there is one
  bool overwrite = false;  ///< replace what is in OUT
};

/// Trains one stage: steps over all processes of the group, log, checkpoints, and at the end the
/// moving average of the weights as the model.
///
/// The weights after n steps depend on the configuration alone: not on interruptions, and, within
/// rounding, not on the number of processes.
///
/// A step whose loss or gradients are not finite is skipped and counted; five in a row end the run
/// with Error non_finite and leave the last checkpoint, and after a skipped step none is saved
/// until a step succeeds. On Error interrupted, terminated or hangup a checkpoint of the last whole
/// step is saved first.
class Trainer {
 public:
  /// Keeps the references.
  ///
  /// throws  Error conflict: OUT holds a run or a trained component already; others as
  ///         `make_training_task` and `Checkpoint::load`
  Trainer(const TrainRequest& request, ProcessGroup& group, Progress& progress, Report& report);

  void run();

  /// For tests: parameters as they are.
  TrainableParameters& parameters() { return task_->parameters(); }
  /// Steps that were skipped.
  int64_t skipped() const { return skipped_; }
  /// Mean loss of the last logged steps; NaN before them.
  double last_loss() const { return last_loss_; }

 private:
  void check_init() const;
  void check_output() const;
  void lock_output();
  void make_task();
  void restore(const std::optional<TrainingState>& state);
  void train();
  void step();
  void read_records();
  void stop_if_asked();
  void save_checkpoint();
  void finish();
  bool is_log_step() const;
  void log_steps();
  void log(const Json& line);

  TrainRequest request_;
  ProcessGroup& group_;
  Progress& progress_;
  Report& report_;
  Checkpoint checkpoint_;
  TrainLog log_;
  std::optional<FolderLock> lock_;
  std::unique_ptr<TrainingTask> task_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t done_ = 0;     // steps
  int64_t skipped_ = 0;  // of these
  int64_t bad_in_a_row_ = 0;
  // Over the steps since the last line of the log that were not skipped.
  struct Sums {
    int64_t steps = 0;
    double loss = 0, gradient_norm = 0;
    void add(double step_loss, double step_norm) {
      ++steps;
      loss += step_loss;
      gradient_norm += step_norm;
    }
  } sums_;
  double last_loss_ = std::numeric_limits<double>::quiet_NaN();
  double started_ = 0;               // seconds of a steady clock
  int64_t started_at_ = 0;           // step
  std::vector<at::Tensor> records_;  // on the device: loss, gradient norm, skipped
};

}  // namespace fovea::pipelines
