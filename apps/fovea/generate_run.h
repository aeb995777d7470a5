#pragma once

#include "apps/fovea/generate_options.h"

namespace fovea::apps {

/// Runs `fovea generate`; returns 0. throws Error
int run_generate(const GenerateOptions& options);

}  // namespace fovea::apps
