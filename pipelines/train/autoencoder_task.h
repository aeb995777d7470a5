#pragma once

#include <memory>

#include "pipelines/train/training_task.h"

namespace fovea::pipelines {

/// Trains the autoencoder on rendered clips: reconstruction and a weak pull of the latents towards
/// the unit normal distribution. Saves it with the mean and spread of its latents.
///
/// paper  Kingma & Welling, "Auto-Encoding Variational Bayes", 2014, section 2.3
std::unique_ptr<TrainingTask> make_autoencoder_task(const TrainConfig& config,
                                                    const TaskSetup& setup, Report& report);

}  // namespace fovea::pipelines
