#pragma once

#include <memory>

#include "pipelines/train/training_task.h"

namespace fovea::pipelines {

/// Trains transformer and text encoder together on the latents of rendered clips, by flow matching:
/// the network sees (1 - s) x + s n of latents x and noise n, and learns n - x. The noise level s
/// is logit-normal, moved by the bucket's flow_shift.
///
/// The autoencoder is the one that was trained in the output folder, or else the one of the folder
/// that training starts from.
///
/// paper  Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
///        2024, sections 2 and 3.1 (logit-normal), 5.3.2 (shift)
std::unique_ptr<TrainingTask> make_transformer_task(const TrainConfig& config,
                                                    const TaskSetup& setup, Report& report);

/// Noise level of a normal number: shift * u / (1 + (shift - 1) * u), u = 1 / (1 + exp(-normal)).
double shifted_noise_level(double normal, double shift);

}  // namespace fovea::pipelines
