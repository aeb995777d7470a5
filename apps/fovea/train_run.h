#pragma once

#include "apps/fovea/train_options.h"

namespace fovea::apps {

/// Runs `fovea train`: alone, as one process of a group, or as the parent of --gpus processes.
int run_train(const TrainOptions& options);

}  // namespace fovea::apps
