#include "pipelines/train/training_task.h"

#include "pipelines/train/autoencoder_task.h"
#include "pipelines/train/transformer_task.h"

namespace fovea::pipelines {

std::unique_ptr<TrainingTask> make_training_task(const TrainConfig& config, const TaskSetup& setup,
                                                 Report& report) {
  switch (config.stage) {
    case TrainStage::autoencoder:
      return make_autoencoder_task(config, setup, report);
    case TrainStage::transformer:
      return make_transformer_task(config, setup, report);
  }
  return nullptr;
}

}  // namespace fovea::pipelines
